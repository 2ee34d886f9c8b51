"""Fine-tuning from the packaged weights: a folder of images, the recipe, samples, merged weights."""

import pytest

from aimamba.models import AiM
from aimamba.train.recipe import recipe_text
from photo_folders import write_photos

TINY = ["--init", "avatars-64", "--data", "photos", "--device", "cpu", "--steps", "1", "--batch-size", "1", "--quiet"]


@pytest.fixture
def photos(here):
    """Two classes of 64 pixels, of which the packaged weights know one."""
    return write_photos(here / "photos", ("planets", "houses"), 3, width=64, height=64)


def test_other_images_are_not_limited_as_those_of_the_recipe(aimamba, photos, here):
    recipe = recipe_text("aim-finetune").replace("[data]\n", "[data]\nskip_per_class = 2\nvariants = 3\n")
    (here / "own.toml").write_text(recipe)
    status, _, err = aimamba("train", "own.toml", *TINY, "--out", "run", "--set", "task.train=classes")
    assert status == 0, err


def test_from_a_folder_to_samples(aimamba, photos, here):
    status, out, err = aimamba("train", "aim-finetune", *TINY, "--out", "run", "--set", "task.train=classes")
    assert status == 0, err
    assert out.startswith("run/model: 1 step, held out: loss")
    base, tuned = (AiM.from_pretrained(name) for name in ("avatars-64", "run"))
    assert tuned.config.num_classes == 2
    assert all(
        weight.equal(base.get_parameter(name))
        for name, weight in tuned.named_parameters()
        if name != "condition.table.weight"
    )
    assert aimamba("sample", "--model", "run", "-n", 1, "--out", "samples").status == 0
    assert (here / "samples" / "houses-seed0.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.size=32"], "avatars-64 has num_tokens 64, but these images and this tokenizer need 16; use"),
        (["--tokenizer", "vq"], "avatars-64 has vocab_size 8192, but these images and this tokenizer need 24"),
        (
            ["--set", "task.train=head"],
            "train must be one of 'auto', 'all' or one of 'classes', 'captions',",
        ),
        (["--set", "task.lora_rank=600"], "task.lora_rank must be at most 256, the width of blocks.0.mixer.in_proj"),
    ],
)
def test_what_does_not_fit_is_one_line(refusal, photos, here, make_vq, arguments, message):
    if "task.lora_rank=600" in arguments:
        pytest.importorskip("peft")
    make_vq(channel_mult=(1, 1, 1, 2)).save_pretrained(here / "vq")
    assert message in refusal("train", "aim-finetune", *TINY, *arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.lora_rank=600"], "task.lora_rank must be at most 256"),
        (["task.lora_rank=4", "task.lora_layers=['in']"], "this generator has no linear layer 'in'"),
        (["task.rear_weight=1", "task.rear_recover_after=9"], "task.rear_recover_after must be at most 8"),
        (["task.rear_weight=1", "task.rear_predict_after=9"], "task.rear_predict_after must be at most 8"),
    ],
)
def test_what_does_not_fit_is_said_before_images_are_encoded(aimamba, photos, here, settings, message):
    if "task.lora" in settings[0]:
        pytest.importorskip("peft")
    arguments = [part for setting in settings for part in ("--set", setting)]
    answer = aimamba("train", "aim-finetune", *TINY[:-1], "--out", "run", *arguments)
    assert answer.status == 2
    assert message in answer.err.splitlines()[-1]
    assert "encoding" not in answer.err
    assert not (here / "run" / "codes").exists()


def test_a_new_generator_that_does_not_fit_is_refused_before_images_are_encoded(aimamba, photos, here):
    arguments = ["--tokenizer", "avatars-64", "--data", "photos", "--size", 64, "--out", "run", "--device", "cpu"]
    settings = ["model.positions='none'", "task.random_order=1", "task.random_order_until=9"]
    answer = aimamba("train", "avatars-tiny-aim", *arguments, *(f"--set={setting}" for setting in settings))
    assert answer.status == 2
    assert "task.random_order needs learned positions" in answer.err.splitlines()[-1]
    assert "encoding" not in answer.err
