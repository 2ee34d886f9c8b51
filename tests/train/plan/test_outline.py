"""What a recipe trains, without opening anything."""

import pytest

from aimamba.config import from_mapping
from aimamba.errors import ConfigError
from aimamba.models import VQConfig, VQModel
from aimamba.train.plan.on_paper import Place
from aimamba.train.plan.outline import outline
from aimamba.train.plan.plan import step_memory
from aimamba.train.recipe import DataConfig, Recipe, load_recipe, recipe_names
from aimamba.train.settings import FitConfig
from quantizer_settings import KINDS, SETTINGS
from refusals import one_line_error


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_has_an_outline(name):
    of = outline(load_recipe(name))
    assert of.trained > 0
    assert of.largest <= of.blocks < of.trained
    assert of.tokens > 0


def test_a_tokenizers_recipe_tells_what_its_generator_is():
    of = outline(load_recipe("avatars-tiny-aim", {"model.num_classes": 10}))
    assert of.tokens == 64
    assert of.notes == ()
    assert "classes were not counted: 1,000 are assumed" in outline(load_recipe("avatars-tiny-aim")).notes


def test_a_tokenizer_that_cannot_be_found_is_assumed_and_noted():
    of = outline(load_recipe("avatars-tiny-aim", {"task.tokenizer": "somewhere/else", "data.size": 64}))
    assert of.tokens == 16
    assert "somewhere/else was not opened: a tokenizer like vq-f16 is assumed" in of.notes


def test_models_in_folders_are_opened_for_their_shape(tmp_path, make_vq, make_aim):
    make_vq().save_pretrained(tmp_path / "vq")
    of = outline(load_recipe("avatars-tiny-aim", {"task.tokenizer": str(tmp_path / "vq"), "data.size": 8}))
    assert of.tokens == 16
    generator = make_aim()
    generator.save_pretrained(tmp_path / "aim")
    of = outline(load_recipe("avatars-tiny-aim", {"init": str(tmp_path / "aim"), "task.tokenizer": "elsewhere/vq"}))
    assert (of.parameters, of.tokens) == (generator.num_parameters(), 9)
    of = outline(load_recipe("avatars-tiny-vq", {"init": str(tmp_path / "vq"), "data.size": 8}))
    assert of.parameters == make_vq().num_parameters()


def test_packaged_models_are_opened_for_their_shape():
    of = outline(load_recipe("vq-finetune", {"init": "avatars-64", "data.size": 64}))
    assert (of.parameters, of.tokens, of.notes) == (7_777_944, 64, ())
    changes = {"init": "avatars-64", "task.tokenizer": "avatars-64", "data.size": 64}
    assert outline(load_recipe("avatars-tiny-aim", changes)).parameters == 6_366_912


def test_a_frozen_perceptual_network_takes_memory_and_no_gradients():
    changes = {"task.perceptual": "lpips", "data.size": 64, "init": "avatars-64"}
    lite0, lpips = (outline(load_recipe("vq-finetune", changes | more)) for more in ({"task.perceptual": "lite0"}, {}))
    assert lpips.trained == lite0.trained
    assert lpips.frozen == 4 * (14_716_160 + 6)  # and shift and scale of its input


def test_label_smoothing_takes_memory():
    plain, smooth = (outline(load_recipe("aim-b-imagenet256", {"task.label_smoothing": s})) for s in (0.0, 0.1))
    assert smooth.trained == plain.trained
    before, after = (each.trace(32, Place(), False).activations for each in (plain, smooth))
    assert after - before > 4 * 32 * 256 * 768, "the vectors of the targets"


def test_a_recipe_that_starts_from_another_one_has_its_shape():
    before, after = (outline(load_recipe(name)) for name in ("avatars-64-vq", "avatars-64-decoder"))
    assert after.parameters == before.parameters
    assert after.trained < after.parameters  # its decoder alone


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vq-f16-imagenet256", {"data.size": 100}, "multiple of the tokenizer's down-sampling 16"),
        ("aim-b-imagenet256", {"model.preset": "aim-c"}, "unknown model.preset"),
        ("aim-b-imagenet256", {"task.label_drop": 1}, "unknown"),
    ],
)
def test_what_cannot_be_trained_cannot_be_planned(name, settings, message):
    with one_line_error(ConfigError, match=message):
        outline(load_recipe(name, settings))


@pytest.mark.parametrize(
    ("settings", "whole", "added"),
    [({"task.train": "classes"}, 11 * 256, 0), ({"task.lora_rank": 4}, 11 * 256, 8 * 4 * (256 + 1096 + 512 + 256))],
)
def test_frozen_weights_have_no_gradient_moments_and_average(settings, whole, added):
    if added:
        pytest.importorskip("peft")
    given = {"init": "avatars-64", "data.source": "nowhere"}
    all_of_it, part = (outline(load_recipe("aim-finetune", {**given, **more})) for more in ({}, settings))
    trained = whole + added
    assert (part.trained, part.averaged, part.notes) == (trained, trained, ())
    assert part.parameters == all_of_it.parameters + added
    place = Place(cuda=True, narrow=True, memory=1 << 36)
    needed = part.trace(2, place, False)
    assert needed.peak < all_of_it.trace(2, place, False).peak
    memory = step_memory(part, needed, average=True, narrow=True)
    assert needed.gradients == memory.gradients == memory.average == 4 * trained
    assert memory.optimizer == 8 * trained


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_with_every_quantizer(kind):
    shape = {"channels": 16, "channel_mult": [1, 2], "z_channels": 16, "norm_groups": 8, "codebook_size": 512}
    recipe = Recipe(
        stage="tokenizer",
        data=DataConfig(size=32),
        model={**shape, **SETTINGS[kind]},
        fit=FitConfig(steps=5, batch_size=4, lr=1e-3),
    )
    found = outline(recipe)
    assert found.parameters == VQModel(from_mapping(VQConfig, recipe.model, where="test")).num_parameters()
    small, large = (found.trace(batch, Place(), False).peak for batch in (2, 8))
    assert 0 < small < large
