"""Every set of images in every command that takes one."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aimamba.data import avatars, sets

STYLES = ("planets", "thumbs")
PER_CLASS = {"train": 6, "held-out": 5}
SIDE = 16

RECIPE = """
stage = "tokenizer"

[data]
size = 16

[model]
channels = 8
channel_mult = [1, 2]
num_res_blocks = 1
z_channels = 8
codebook_size = 16
codebook_dim = 4
norm_groups = 4
attention = false

[fit]
steps = 1
batch_size = 2
lr = 1e-3
"""


@pytest.fixture(autouse=True)
def few_images(monkeypatch, here, photos):
    """Two styles of few avatars, Fashion-MNIST of noise, an .npz file, and folders with and without classes."""
    monkeypatch.setattr(sets, "STYLES", STYLES)
    monkeypatch.setattr(avatars, "AVATARS_PER_CLASS", PER_CLASS)
    monkeypatch.setenv("AIMAMBA_DATA", str(here / "data"))
    rng = np.random.default_rng(0)
    folder = here / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        arrays = {"images-idx3": rng.integers(0, 256, (20, 28, 28)), "labels-idx1": np.arange(20) % 10}
        for name, array in arrays.items():
            header = struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    np.savez("square.npz", arr_0=rng.integers(0, 256, (5, SIDE, SIDE, 3), np.uint8), arr_1=np.arange(5) % 2)


@pytest.fixture(scope="module")
def model(make_aim, make_vq, tmp_path_factory) -> Path:
    """A model that generates images of 16 pixels."""
    from aimamba.pipeline import Pipeline

    folder = tmp_path_factory.mktemp("model")
    Pipeline(make_vq(), make_aim(num_tokens=64, num_classes=2), STYLES).save_pretrained(folder)
    return folder


@pytest.fixture
def light(monkeypatch):
    """A stand-in for the network: a few numbers of each image."""
    from aimamba.evaluation import features

    def start(self, *, device="cpu"):
        self.device, self.batch_size, self.width, self.spatial_width = torch.device("cpu"), 4, 4, 0
        self.settings = {"network": "stand-in"}

    monkeypatch.setattr(features.Lite0, "__init__", start)
    monkeypatch.setattr(
        features.Lite0, "__call__", lambda self, x: features.Features(x.float().mean(1)[:, 9, 9:13] / 255)
    )


# By name: how many images of which side, and the options it needs.
SETS = {
    "avatars": (10, 16, "--size 16"),
    "avatars-16": (10, 16, ""),
    "avatars-16:planets": (5, 16, ""),
    "avatars-16:train": (12, 16, ""),
    "avatars:thumbs,planets:held-out:2": (4, 16, "--size 16"),
    "avatars-16:thumbs:train:4": (4, 16, "--size 16"),
    "fashion-mnist": (20, 32, ""),
    "fashion-mnist-28:train:1": (10, 28, ""),
    "fashion-mnist:data/fashion-mnist:held-out:1": (10, 32, ""),
    "data/fashion-mnist:train": (20, 32, ""),
    "photos": (16, 16, "--size 16"),
    "photos:cats": (8, 16, "--size 16"),
    "photos:dogs,cats:all:3": (6, 16, "--size 16"),
    "photos:train:3": (6, 16, "--size 16"),
    "photos/cats": (8, 16, "--size 16"),
    "square.npz": (5, 16, ""),
}


@pytest.mark.parametrize("name", SETS)
def test_measuring(aimamba, light, model, name):
    count, size, options = SETS[name]
    expected = {"name": name, "count": count, "size": size}
    command = ["evaluate", name, "--reference", name, "--train", name, *options.split(), "--json", "found.json"]
    status, _, err = aimamba(*command)
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())["settings"]
    assert found["samples"] == found["reference"] == expected
    assert found["train"] == {"name": name, "count": count}
    status, _, err = aimamba("evaluate-tokenizer", model, name, *options.split(), "--json", "found.json")
    assert status == 0, err
    assert json.loads(Path("found.json").read_text())["settings"]["pictures"] == expected


@pytest.mark.parametrize("name", SETS)
def test_reconstructing(aimamba, model, name):
    count, size, options = SETS[name]
    status, out, err = aimamba("reconstruct", name, "--model", model, *options.split())
    assert status == 0, err
    assert out.startswith(f"{count} images at {size} px")


def test_several_sets_beside_each_other(aimamba, model):
    command = ["reconstruct", "avatars-16:held-out:1", "photos:cats", "square.npz", "photos/dogs/0.png"]
    status, out, err = aimamba(*command, "--model", model)
    assert status == 0, err
    assert out.startswith("16 images at 16 px")
    names = sorted(path.name for path in Path("reconstructions").iterdir())
    assert names[:3] == ["0000-planets-0.png", "0001-thumbs-1.png", "0002-cats-0.png"]
    with Image.open("reconstructions/0001-thumbs-1.png") as pair:
        original = np.asarray(pair)[:, :SIDE]
    assert np.array_equal(original, sets.open_source("avatars-16:held-out:1").image(1))


def test_avatars_have_the_size_of_the_model(aimamba, light, refusal, model):
    status, out, err = aimamba("reconstruct", "avatars:held-out:2", "--model", model)
    assert status == 0, err
    assert out.startswith("4 images at 16 px")
    assert aimamba("evaluate-tokenizer", model, "avatars:held-out:2", "--json", "found.json").status == 0
    assert json.loads(Path("found.json").read_text())["settings"]["pictures"]["size"] == 16
    options = ["--reference", "avatars:held-out:4", "-n", 6, "--json", "found.json"]
    assert aimamba("evaluate", "--model", model, *options).status == 0
    assert json.loads(Path("found.json").read_text())["settings"]["reference"]["size"] == 16
    line = refusal("evaluate-tokenizer", model / "tokenizer", "avatars:train")
    assert line == (
        "avatars:train: the size of the images is missing; write it in the name, as in avatars-64:train, or give --size"
    )


def test_a_whole_held_out_set_brings_its_training_set(aimamba, light):
    for reference, train in {"avatars-16": "avatars-16:train", "fashion-mnist:held-out": "fashion-mnist:train"}.items():
        assert aimamba("evaluate", reference, "--reference", reference, "--json", "found.json").status == 0
        assert json.loads(Path("found.json").read_text())["settings"]["train"]["name"] == train


# By name: training images, held-out images, side.
LEARNED = {
    "avatars": (12, 10, 16),
    "avatars-16": (12, 10, 16),
    "avatars:thumbs": (6, 5, 16),
    "avatars-16:planets,thumbs": (12, 10, 16),
    "fashion-mnist": (20, 20, 32),
    "fashion-mnist-28": (20, 20, 28),
    "fashion-mnist:data/fashion-mnist": (20, 20, 32),
    "photos": (None, None, 16),
    "photos:cats": (None, None, 16),
}


@pytest.mark.parametrize("name", LEARNED)
def test_encoding(aimamba, model, name):
    train, held_out, size = LEARNED[name]
    options = [] if name.startswith("fashion") or "-16" in name else ["--size", 16]
    status, _, err = aimamba("encode", model, name, "--out", "codes", *options)
    assert status == 0, err
    for split, count in (("train", train), ("held-out", held_out)):
        meta = json.loads(Path(f"codes/{split}/meta.json").read_text())
        assert meta["size"] == size
        assert count in (None, meta["pictures"])


@pytest.mark.parametrize("name", LEARNED)
def test_training(aimamba, name):
    Path("vq.toml").write_text(RECIPE)
    status, _, err = aimamba("train", "vq.toml", "--data", name, "--size", LEARNED[name][2])
    assert status == 0, err


STUDY = """
kind = "scaling"
budget = 4

[data]
source = "{source}"
size = 16

[model]
width = 16
num_blocks = 1
state_size = 4
head_width = 8

[fit]
batch_size = 2
lr = 1e-2

[judging]
reference = "{reference}"
samples = 4
scales = [1.0]

[[variants]]
name = "only"
"""


@pytest.mark.parametrize(
    ("source", "reference"),
    [("avatars-16:thumbs", "photos:train:3"), ("photos:cats", "square.npz")],  # others are in test_cli_study.py
)
def test_studying(aimamba, light, make_vq, source, reference):
    make_vq(channel_mult=(1, 1, 2)).save_pretrained("vq")
    Path("study.toml").write_text(STUDY.format(source=source, reference=reference))
    status, _, err = aimamba("study", "study.toml", "--tokenizer", "vq", "--device", "cpu")
    assert status == 0, err
    results = json.loads(Path("studies/study/results.json").read_text())
    assert list(results["runs"]) == ["only-seed-0"]
    assert results["settings"]["recipe"]["judging"]["reference"] == reference


NOT_LEARNED = {
    "avatars-16:held-out": "training and encoding choose the split themselves; leave out ':held-out'",
    "avatars-16:train:3": "leave out ':train' and what follows",
    "photos:held-out": "leave out ':held-out'",
    "avatars-32": "the name says 32 pixels, but the size is set to 16",
    "avatars:planet": "no avatar style 'planet'",
    "avatars:heldout": "did you mean 'held-out'",
    "avatar": "no such file, folder or named set (did you mean 'avatars'?)",
    "photos/cats": "holds 8 images but no sub-folders",
    "photos:cat": "no class 'cat' among its 2 folders (did you mean 'cats'?)",
    "square.npz": "this is a file, but training and encoding need a folder",
}


@pytest.mark.parametrize("name", NOT_LEARNED)
def test_sets_that_cannot_be_learned(refusal, model, name):
    Path("vq.toml").write_text(RECIPE)
    assert NOT_LEARNED[name] in refusal("encode", model, name, "--out", "codes", "--size", 16)
    assert NOT_LEARNED[name] in refusal("train", "vq.toml", "--data", name)


NOT_MEASURED = {
    "avatars-16 --size 8": "the name says 16 pixels, but the size is set to 8",
    "square.npz --size 8": "its images are 16 x 16 pixels and are not scaled, but the size is set to 8",
    "square.npz:held-out": "a file has no classes or splits to choose from",
    "avatars-16:held-out:x": "expected a number of images of each class after held-out",
    "avatars-16:all": "avatars have no split 'all'; use train or held-out",
    "avatars-16:test": "no avatar style 'test'",
    "fashion-mnist-64": "Fashion-MNIST has images of 32 pixels, or 28 without a margin",
    "fashion-mnist:nowhere": "nowhere: there is no t10k-images-idx3-ubyte",
    "photos:bird": "'bird' is neither a split (train, held-out, all) nor one of its 2 class folders",
    "photoz": "no such file, folder or named set (did you mean 'photos'?)",
}


@pytest.mark.parametrize("name", NOT_MEASURED)
def test_sets_that_cannot_be_measured(refusal, light, model, name):
    for command in (["evaluate", "--reference", "square.npz"], ["evaluate-tokenizer", model]):
        assert NOT_MEASURED[name] in refusal(*command, *name.split())
    if "--size" not in name:
        assert NOT_MEASURED[name] in refusal("evaluate", "square.npz", "--reference", name)
        assert NOT_MEASURED[name] in refusal("reconstruct", name, "--model", model)
