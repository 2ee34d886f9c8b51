"""``aimamba evaluate-text``."""

import json
from pathlib import Path

import pytest

from aimamba.data import captioned
from aimamba.data.vocabulary import Vocabulary
from aimamba.evaluation import attribute_reader, text
from aimamba.models.text import TextConfig
from aimamba.pipeline import Pipeline

SET = "captioned-avatars-8:critters:held-out:6"


@pytest.fixture
def model(make_aim, make_vq, here, monkeypatch, light, generated):
    """A model of captions at 8 pixels, and the batches that were generated."""
    monkeypatch.setenv("AIMAMBA_CACHE", str(here / "cache"))
    monkeypatch.setattr(captioned, "AVATARS_PER_CLASS", {"train": 20, "held-out": 20})
    monkeypatch.setattr(text, "TRAINED_ON", 16)
    for name, value in {"_SIDE": 16, "_WIDTH": 8, "_EPOCHS": 1}.items():
        monkeypatch.setattr(attribute_reader, name, value)
    vocabulary = Vocabulary.train(["a red critter with one eye on a blue background"], 300)
    config = TextConfig(tokens=8, vocabulary=len(vocabulary), width=32, blocks=1)
    Pipeline(make_vq(), make_aim(text=config, num_tokens=16), tuple("abcde"), vocabulary).save_pretrained("model")
    return generated


@pytest.mark.filterwarnings("ignore::aimamba.data.vocabulary.TruncatedCaptionWarning")
def test_an_interrupted_one_goes_on(aimamba, model):
    command = ["evaluate-text", "model", SET, "-n", 8, "--batch-size", 3, "--sweep", 2, "--device", "cpu"]
    command += ["--json", "found.json", "--plot", "found.svg"]
    answer = aimamba(*command)
    assert answer.status == 0, answer.err
    assert "samples at guidance 2: lite0 Fréchet distance" in answer.out
    assert "bits a token" in answer.out
    whole = json.loads(Path("found.json").read_text())
    assert whole["settings"]["guidance_scales"] == [1.0, 2.0]
    assert whole["lite0"][SET]["samples"] == 8
    assert Path("found.svg").read_text().startswith("<svg")
    assert sum(model) == 16
    assert not list(Path("cache/samples").glob("*")), "nothing stays of a finished one"
    model.clear()
    model.stop_at = 4
    answer = aimamba(*command)
    assert answer.status == 130
    assert "the same command goes on" in answer.err
    model.clear()
    model.stop_at = None
    assert aimamba(*command).status == 0
    assert sum(model) == 5
    assert json.loads(Path("found.json").read_text()) == whole


def test_refusals(aimamba, refusal, model, make_aim, make_vq, photos):
    Pipeline(make_vq(), make_aim(num_tokens=16), tuple("abcde")).save_pretrained("classes")
    assert "takes classes and no captions" in refusal("evaluate-text", "classes", SET, "--device", "cpu")
    answer = aimamba("evaluate-text", "model", photos, "--size", 8, "--device", "cpu")
    assert answer.status == 2
    assert "0 images with captions" in answer.err.splitlines()[-1]
    assert "-n must be at least 2, got 1" in refusal("evaluate-text", "nowhere", SET, "-n", 1)
    assert "nowhere" in refusal("evaluate-text", "nowhere", SET)
    for scales in ("a", ",", "1,,2", ""):
        assert "--sweep expects numbers" in refusal("evaluate-text", "model", SET, "--sweep", scales)
    assert "--plot a.png: the name must end in .svg" in refusal("evaluate-text", "model", SET, "--plot", "a.png")
    assert "did you mean 'photos'" in refusal("evaluate-text", "model", "photo")
