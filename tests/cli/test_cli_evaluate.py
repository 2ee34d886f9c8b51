"""``aimamba evaluate``."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from aimamba.cli import output
from aimamba.data import Avatars, sets
from aimamba.evaluation import protocol
from aimamba.pipeline import Pipeline

STYLES = ("planets", "thumbs")


@pytest.fixture(autouse=True)
def few_avatars(monkeypatch):
    monkeypatch.setattr(sets, "STYLES", STYLES)


@pytest.fixture
def model(make_aim, make_vq, here):
    """A model of two styles at 8 pixels."""
    Pipeline(make_vq(), make_aim(num_classes=2, num_tokens=16), STYLES).save_pretrained(here / "model")
    return here / "model"


@pytest.fixture
def light(monkeypatch):
    """Replace both networks: the features are a few pixels of each image."""
    from aimamba.evaluation import features

    for network in (features.Lite0, features.InceptionV3):

        def start(self, source="", *, device="cpu", name=network.name):
            self.device, self.batch_size, self.width = torch.device("cpu"), 4, 4
            self.spatial_width = 2 if name == "inception" else 0
            self.settings = {"network": name}

        def look(self, images):
            found = images.flatten(2)[:, :, 27:29].flatten(1).float() / 255
            rest = (found[:, 4:], found) if self.name == "inception" else ()
            return features.Features(found[:, :4], *rest)

        monkeypatch.setattr(network, "__init__", start)
        monkeypatch.setattr(network, "__call__", look)


def test_two_sets(aimamba, here):
    options = ["--reference", "avatars-8:held-out:5", "--json", "found.json"]
    status, out, err = aimamba("evaluate", "avatars-8:train:4", *options)
    assert status == 0, err
    assert "lite0 Fréchet distance" in out
    assert "FID" not in out.replace("Fréchet", "")
    assert "lite0 5-NN accuracy, unanimous " in out
    found = json.loads((here / "found.json").read_text())
    assert found.keys() == {"lite0", "settings"}
    assert {"frechet", "kid", "precision", "recall", "recognition"} <= found["lite0"].keys()
    assert "neighbours" not in found["lite0"]
    settings = found["settings"]
    assert settings["samples"] == {"name": "avatars-8:train:4", "count": 8, "size": 8}
    assert settings["reference"]["count"] == 10
    assert settings["features"]["smallest_side"] == 128


def test_a_model(aimamba, light, model, here, monkeypatch):
    monkeypatch.setattr(sets, "AVATARS_PER_CLASS", {"train": 4, "held-out": 5})
    options = "--reference avatars-8:held-out -n 20 --cfg-scale 2 --top-k 5 --seed 3 --json found.json"
    status, out, err = aimamba("evaluate", "--model", model, *options.split())
    assert status == 0, err
    assert "lite0 closer to avatars-8:train" in out
    assert "codes of avatars-8:train" in out
    found = json.loads((here / "found.json").read_text())
    assert found["lite0"]["recognition"]["per_class"].keys() == set(STYLES)
    assert found["lite0"]["neighbours"]["train"] == "avatars-8:train"
    samples = found["settings"]["samples"]
    assert (samples["count"], samples["labels"], samples["decode_position_shift"]) == (20, "balanced", 0)
    assert samples["sampling"]["cfg_scale"] == 2
    assert samples["sampling"]["top_k"] == 5
    assert found["settings"]["train"] == {"name": "avatars-8:train", "count": 8}
    again = aimamba("evaluate", "--model", model, *options.split(), "--train", "none", "--batch-size", 3)
    assert [line.split() for line in again.out.splitlines()] == [line.split() for line in out.splitlines()[:-2]]


def test_a_folder_of_samples_and_one_of_photos(aimamba, light, models, photos):
    aimamba("sample", "--model", models / "pipeline", "-n", 2)
    status, out, _ = aimamba("evaluate", "samples", "--reference", photos)
    assert status == 0
    assert "5-NN accuracy" not in out  # loose images have no classes


REFUSALS = {
    "--reference avatars-8:held-out:2": ["give either SAMPLES or --model"],
    "a --model b --reference c": ["give either SAMPLES or --model"],
    "nowhere --reference avatars-8:held-out:2": ["nowhere: no such file, folder or named set"],
    "nine.npz --reference avatars-8:held-out:2": ["9 x 9 pixels, avatars-8:held-out:2 of 8 x 8"],
    "nine.npz --reference avatars-8:held-out:2 --features vgg": ["--features vgg: no such file"],
    "nine.npz --reference avatars-8:held-out:2 --json .": ["--json", "is a folder"],
    "nine.npz --reference avatars-8:held-out:2 --json no/f.json": ["there is no folder no"],
    "floats.npz --reference avatars-8:held-out:2": ["floats.npz: arr_0 holds float32"],
    "one.npz --reference avatars-8:held-out:2": ["one.npz: too few images to measure a set, got 1"],
    "nine.npz --reference avatars-8:held-out:2 -n 4": [
        "-n and --labels describe the samples of a model, so they need --model"
    ],
    "nine.npz --reference nine.npz --size 0": ["--size must be at least 1 pixel, got 0"],
    "nine.npz --reference avatars-8:held-out:2 --sweep 1,2": [
        "--protocol and --sweep sample a model, so they need --model"
    ],
    "--model model --reference avatars-8:held-out:2 --sweep 1,x": [
        "--sweep expects numbers separated by commas",
        "'1,x'",
    ],
    "--model model --reference avatars-8:held-out:2 --sweep -1": [
        "--sweep expects guidance scales of 0 or more, got -1"
    ],
    "--model model --reference avatars-8:held-out:2 --report nine.npz": ["--report", "is a file"],
    "--model model --reference avatars-8:held-out:2 --protocol paper": ["--protocol must be aim-paper, got 'paper'"],
    "--model model --reference avatars-8:held-out:2 --protocol aim-paper": ["needs decode_position_shift 1"],
    "--model model --reference avatars-8:held-out:2 -n 0": ["-n must be at least 1, got 0"],
    "--model model --reference avatars-8:held-out:2 --labels even": ["balanced or random, got 'even'"],
}


@pytest.mark.parametrize("command", REFUSALS)
def test_refusals(refusal, model, here, command):
    np.savez(here / "floats.npz", arr_0=np.zeros((3, 8, 8, 3), np.float32))
    np.savez(here / "one.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8))
    np.savez(here / "nine.npz", arr_0=np.zeros((5, 9, 9, 3), np.uint8))
    Avatars(8, "held-out", 2, STYLES)  # cached now so that no bar is shown
    message = refusal("evaluate", *command.split())
    for part in REFUSALS[command]:
        assert part in message


def test_a_sweep_and_a_report(aimamba, light, model, here):
    options = "--reference avatars-8:held-out:5 -n 8 --sweep 1,3,1 --json found.json --report page"
    status, out, err = aimamba("evaluate", "--model", model, *options.split())
    assert status == 0, err
    assert out.endswith(f"report: {Path('page') / 'index.html'}\n")
    found = json.loads((here / "found.json").read_text())["lite0"]
    one, three = found["guidance"]
    assert (one["cfg_scale"], three["cfg_scale"]) == (1, 3)
    assert one["frechet"] == found["frechet"]
    assert one["recognised"] == found["recognition"]["share"]
    alone = aimamba("evaluate", "--model", model, *options.split()[:4], "--cfg-scale", 3)
    assert f" {three['frechet']:.2f}\n" in alone.out
    for entry in (one, three):
        share = f"unanimous 5-NN accuracy {entry['recognised']:.1%}"
        numbers = f"Fréchet distance {entry['frechet']:.2f}, kernel distance .*, {share}"
        assert re.search(f"lite0 at guidance {entry['cfg_scale']:g} +{numbers}", out)
    assert "Sampled with guidance 1, seed 0." in (here / "page" / "index.html").read_text(encoding="utf-8")
    assert "by guidance scale" in (here / "page" / "index.html").read_text(encoding="utf-8")


def test_the_papers_protocol(aimamba, refusal, light, make_aim, make_vq, here, monkeypatch):
    """The whole protocol at a small size: a small model, few images, a stand-in for the network."""
    monkeypatch.setattr(protocol, "IMAGES", 24)
    shape = {"num_classes": 10, "num_tokens": 16, "decode_position_shift": 1}
    Pipeline(make_vq(), make_aim(**shape)).save_pretrained(here / "official")
    rng = np.random.default_rng(0)
    stored = {"mu": np.zeros(4), "sigma": np.eye(4), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez("VIRTUAL.npz", arr_0=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), **stored)
    options = "--protocol aim-paper --model official --reference VIRTUAL.npz --json found.json"
    command = ["evaluate", *options.split()]
    status, out, err = aimamba(*command, "--cfg-scale", 1.5)
    assert status == 0, err
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        *("inception FID", "inception sFID", "inception Inception score", "inception KID"),
        *("inception precision", "inception recall"),
    ]
    found = json.loads((here / "found.json").read_text())
    assert found["inception"].keys() >= {"fid", "sfid", "inception_score", "precision", "recall"}
    samples = found["settings"]["samples"]
    assert (samples["count"], samples["labels"], samples["decode_position_shift"]) == (24, "random", 1)
    assert samples["sampling"]["cfg_scale"] == 1.5
    assert found["settings"]["protocol"] == "aim-paper"
    for flags, message in {
        "": "give --cfg-scale",
        "--cfg-scale 1.5 -n 9": "--protocol aim-paper fixes n 24, got 9",
        "--cfg-scale 1.5 --labels balanced": "fixes labels random, got balanced",
        "--cfg-scale 1.5 --top-k 3": "without top-k",
    }.items():
        assert message in refusal(*command, *flags.split())


def test_numbers_are_written_before_they_are_printed(aimamba, light, model, here, monkeypatch):
    def fail(rows):
        raise OSError(5, "the terminal has gone")

    monkeypatch.setattr(output, "print_table", fail)
    options = "--reference avatars-8:held-out:5 -n 8 --json found.json --report page"
    assert aimamba("evaluate", "--model", model, *options.split()).status == 2
    assert "frechet" in json.loads((here / "found.json").read_text())["lite0"]
    assert (here / "page" / "index.html").exists()
