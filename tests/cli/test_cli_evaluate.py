"""``aimamba evaluate``."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aimamba.cli import output
from aimamba.data import Avatars, avatars, sets
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
    monkeypatch.setattr(avatars, "AVATARS_PER_CLASS", {"train": 4, "held-out": 5})
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
        "--sweep expects guidance scales from 0 to 1,000,000, got -1"
    ],
    "--model model --reference avatars-8:held-out:2 --train none --sweep 1e39": ["from 0 to 1,000,000, got 1e+39"],
    "--model model --reference avatars-8:held-out:2 --train none -n 3": [
        "more than 3 images in each set, got 3 samples"
    ],
    "five.npz --reference three.npz": ["precision and recall with 3 neighbours need", "got 5 samples and 3 in"],
    "five.npz --reference avatars-8:held-out:2 --train one.npz": ["one.npz: too few images to measure a set, got 1"],
    "five.npz --reference avatars-8:held-out:2 --json five.npz": ["--json five.npz: this is what the command reads"],
    "five.npz --reference avatars-8:held-out:2 --json s.npz --save-npz s.npz": ["--json and --save-npz name the same"],
    "five.npz --reference images --report images": ["--report images: this is what the command reads"],
    "labels.npz --reference avatars-8:held-out:2": ["labels.npz: arr_1 holds int64 of shape (3,); expected the class"],
    "--model model --reference avatars-8:held-out:2 --report nine.npz": ["--report", "is a file"],
    "--model model --reference avatars-8:held-out:2 --protocol paper": ["--protocol must be aim-paper, got 'paper'"],
    "--model model --reference avatars-8:held-out:2 --protocol aim-paper": ["needs decode_position_shift 1"],
    "--model model --reference avatars-8:held-out:2 -n 0": ["-n must be from 1 to 10,000,000, got 0"],
    "--model model --reference avatars-8:held-out:2 --labels even": ["balanced or random, got 'even'"],
}


@pytest.mark.parametrize("command", REFUSALS)
def test_refusals(refusal, model, here, command):
    np.savez(here / "floats.npz", arr_0=np.zeros((3, 8, 8, 3), np.float32))
    np.savez(here / "one.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8))
    np.savez(here / "nine.npz", arr_0=np.zeros((5, 9, 9, 3), np.uint8))
    for name, count in {"three": 3, "five": 5}.items():
        np.savez(here / f"{name}.npz", arr_0=np.zeros((count, 8, 8, 3), np.uint8))
    np.savez(here / "labels.npz", arr_0=np.zeros((5, 8, 8, 3), np.uint8), arr_1=np.arange(3))
    (here / "images").mkdir()
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
    assert f" {three['frechet']:.2f}  (few images: 8, needs 2,048)\n" in alone.out
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
        *("inception precision", "inception recall", "Table 2: FID | IS | precision | recall"),
    ]
    found = json.loads((here / "found.json").read_text())
    assert found["inception"].keys() >= {"fid", "sfid", "inception_score", "precision", "recall"}
    samples = found["settings"]["samples"]
    assert (samples["count"], samples["labels"], samples["decode_position_shift"]) == (24, "random", 1)
    assert samples["sampling"]["cfg_scale"] == 1.5
    assert found["settings"]["protocol"] == "aim-paper"
    assert "rehearsal" not in found["settings"]
    for flags, network, text in (
        ("-n 9", "inception", "9 of 24 samples: not comparable with published numbers"),
        ("--features lite0", "lite0", "lite0 in place of Inception: not comparable with published numbers"),
        ("--features lite0 -n 9", "lite0", "9 of 24 samples, lite0 in place of Inception: not comparable"),
    ):
        answer = aimamba(*command, "--cfg-scale", 1.5, *flags.split(), "--report", "page")
        assert answer.status == 0, answer.err
        assert answer.out.splitlines()[-2].startswith("rehearsal of aim-paper")
        assert text in answer.out
        found = json.loads((here / "found.json").read_text())
        assert text in found["settings"]["rehearsal"]
        assert network in found
        assert text in (here / "page" / "index.html").read_text(encoding="utf-8")
    for flags, message in {
        "": "give --cfg-scale",
        "--cfg-scale 1.5 -n 25": "--protocol aim-paper takes 24 samples, fewer for a rehearsal; got 25",
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
