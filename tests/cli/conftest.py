"""The command line run in this process: its answers, and tiny models and runs for it to work on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from photo_folders import write_photos

NAMES = ("planets", "sprouts", "Robots", "sea shells", "cats, small")

TOKENIZER_RECIPE = """
stage = "tokenizer"

[data]
source = "avatars:planets,sprouts"
size = 16
per_class = 6
held_out_per_class = 2

[model]
channels = 8
channel_mult = [1, 2, 2]
num_res_blocks = 1
z_channels = 8
codebook_size = 16
codebook_dim = 4
norm_groups = 4
attention = false

[fit]
steps = 3
batch_size = 4
lr = 1e-3
"""

GENERATOR_RECIPE = """
stage = "generator"

[data]
source = "avatars:planets,sprouts"
size = 16
per_class = 6
held_out_per_class = 2

[model]
width = 16
num_blocks = 1
state_size = 4
head_width = 8

[task]
sheet_pictures = 1

[fit]
steps = 2
batch_size = 4
lr = 1e-3
"""


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cache(make_cache) -> Path:
    """The cache folder of all tests of commands."""
    return make_cache()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, cache) -> Path:
    """Every test works in a folder of its own."""
    monkeypatch.setenv("AIMAMBA_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def aimamba(capsys) -> Callable[..., Answer]:
    """Run a command."""
    from aimamba.cli import main

    def run(*arguments: Any) -> Answer:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse's --help
            status = leaving.code
        return Answer(status, *capsys.readouterr())

    return run


@pytest.fixture
def refusal(aimamba) -> Callable[..., str]:
    """Run a command that cannot work; its one line, without the program's name."""

    def run(*arguments: Any) -> str:
        status, out, err = aimamba(*arguments)
        assert status == 2
        assert out == ""
        assert err.startswith("aimamba: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err.removeprefix("aimamba: ").rstrip("\n")

    return run


@pytest.fixture(scope="session")
def pipeline(make_aim, make_vq):
    """Images of 6 pixels in five classes."""
    from aimamba.pipeline import Pipeline

    return Pipeline(make_vq(), make_aim(), NAMES)


@pytest.fixture(scope="session")
def models(pipeline, tmp_path_factory) -> Path:
    """A folder with ``pipeline``, ``tokenizer`` and ``generator``."""
    folder = tmp_path_factory.mktemp("models")
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.generator.save_pretrained(folder / "generator")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cache) -> Path:
    """A folder with recipes ``vq.toml`` and ``aim.toml`` and what came of them in ``runs``."""
    from aimamba.cli import main

    folder = tmp_path_factory.mktemp("trained")
    (folder / "vq.toml").write_text(TOKENIZER_RECIPE)
    (folder / "aim.toml").write_text(GENERATOR_RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIMAMBA_CACHE", str(cache))
        patch.chdir(folder)
        assert main(["train", "vq.toml", "--device", "cpu"]) == 0
        assert main(["train", "aim.toml", "--tokenizer", f"runs{os.sep}vq", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def photos(here) -> Path:
    """A folder of two classes of eight images, 24 x 20 pixels."""
    return write_photos(here / "photos", ("cats", "dogs"), 8, width=24, height=20)


@pytest.fixture
def generated(monkeypatch):
    """The sizes of the batches that were generated; the one with number ``stop_at`` is interrupted."""
    from aimamba.pipeline import core

    generate = core.generate

    class Batches(list):
        stop_at = None

    seen = Batches()

    def counted(model, labels, *arguments, **options):
        if len(seen) == seen.stop_at:
            raise KeyboardInterrupt
        seen.append(len(labels))
        return generate(model, labels, *arguments, **options)

    monkeypatch.setattr(core, "generate", counted)
    return seen


@pytest.fixture
def light(monkeypatch):
    """Replace both networks: the features are a few pixels of each image."""
    import torch

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
