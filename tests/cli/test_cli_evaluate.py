"""``aimamba evaluate``."""

import json

import numpy as np
import pytest

from aimamba.data import Avatars
from aimamba.evaluation import sources
from aimamba.pipeline import Pipeline

STYLES = ("planets", "thumbs")


@pytest.fixture(autouse=True)
def few_avatars(monkeypatch):
    monkeypatch.setattr(sources, "STYLES", STYLES)


@pytest.fixture
def model(make_aim, make_vq, here):
    """A model of two styles at 8 pixels."""
    Pipeline(make_vq(), make_aim(num_classes=2, num_tokens=16), STYLES).save_pretrained(here / "model")
    return here / "model"


def test_two_sets(aimamba, here):
    options = ["--reference", "avatars-8:held-out:5", "--json", "found.json"]
    status, out, err = aimamba("evaluate", "avatars-8:train:4", *options)
    assert status == 0, err
    assert "lite0 Fréchet distance" in out
    assert "FID" not in out.replace("Fréchet", "")
    assert "lite0 recognised " in out
    found = json.loads((here / "found.json").read_text())
    assert found.keys() == {"lite0", "settings"}
    assert {"frechet", "kid", "precision", "recall", "recognition"} <= found["lite0"].keys()
    assert "neighbours" not in found["lite0"]
    settings = found["settings"]
    assert settings["samples"] == {"name": "avatars-8:train:4", "count": 8, "size": 8}
    assert settings["reference"]["count"] == 10
    assert settings["features"]["smallest_side"] == 128


def test_a_model(aimamba, model, here, monkeypatch):
    monkeypatch.setattr(sources, "AVATARS_PER_CLASS", {"train": 4, "held-out": 5})
    options = "--reference avatars-8:held-out -n 20 --cfg-scale 2 --top-k 5 --seed 3 --json found.json"
    status, out, err = aimamba("evaluate", "--model", model, *options.split())
    assert status == 0, err
    assert "lite0 nearer to avatars-8:train" in out
    found = json.loads((here / "found.json").read_text())
    assert found["lite0"]["recognition"]["per_class"].keys() == set(STYLES)
    assert found["lite0"]["neighbours"]["train"] == "avatars-8:train"
    drawn = found["settings"]["samples"]
    assert (drawn["count"], drawn["labels"], drawn["decode_position_shift"]) == (20, "balanced", 0)
    assert drawn["sampling"]["cfg_scale"] == 2
    assert drawn["sampling"]["top_k"] == 5
    assert found["settings"]["train"] == {"name": "avatars-8:train", "count": 8}
    again = aimamba("evaluate", "--model", model, *options.split(), "--train", "none", "--batch-size", 3)
    assert [line.split() for line in again.out.splitlines()] == [line.split() for line in out.splitlines()[:-1]]


def test_a_folder_of_samples_and_one_of_photos(aimamba, models, photos):
    aimamba("sample", "--model", models / "pipeline", "-n", 2)
    status, out, _ = aimamba("evaluate", "samples", "--reference", photos)
    assert status == 0
    assert "recognised" not in out  # loose pictures have no classes


REFUSALS = {
    "--reference avatars-8:held-out:2": ["give either SAMPLES or --model"],
    "a --model b --reference c": ["give either SAMPLES or --model"],
    "nowhere --reference avatars-8:held-out:2": ["nowhere: no such folder, .npz file or named set"],
    "nine.npz --reference avatars-8:held-out:2": ["9 x 9 pixels, avatars-8:held-out:2 of 8 x 8"],
    "nine.npz --reference avatars-8:held-out:2 --features vgg": ["--features", "'vgg'"],
    "nine.npz --reference avatars-8:held-out:2 --json .": ["--json", "is a folder"],
    "nine.npz --reference avatars-8:held-out:2 --json no/f.json": ["there is no folder no"],
    "floats.npz --reference avatars-8:held-out:2": ["floats.npz: arr_0 holds float32"],
    "one.npz --reference avatars-8:held-out:2": ["one.npz: too few pictures to measure a set, got 1"],
    "--model model --reference avatars-8:held-out:2 -n 0": ["-n must be at least 1, got 0"],
    "--model model --reference avatars-8:held-out:2 --labels even": ["balanced or random, got 'even'"],
}


@pytest.mark.parametrize("command", REFUSALS)
def test_refusals(refusal, model, here, command):
    np.savez(here / "floats.npz", arr_0=np.zeros((3, 8, 8, 3), np.float32))
    np.savez(here / "one.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8))
    np.savez(here / "nine.npz", arr_0=np.zeros((5, 9, 9, 3), np.uint8))
    Avatars(8, "held-out", 1, STYLES)  # drawn now, without a bar
    message = refusal("evaluate", *command.split())
    for part in REFUSALS[command]:
        assert part in message
