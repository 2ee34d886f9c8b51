"""Small folders, networks and images for fast tests."""

from pathlib import Path

import pytest
import torch
from PIL import Image

STYLES = ("planets", "thumbs", "critters")  # instead of all ten, which take long to draw


class Plain:
    """A network without weights: a few sums over pixels."""

    name = "plain"
    width = 6
    spatial_width = 4
    batch_size = 3

    def __init__(self, name="plain", logits=False):
        self.name = name
        self.device = torch.device("cpu")
        self.seen = 0
        self._logits = logits
        self._matrix = torch.randn(3 * 8 * 8, 10, generator=torch.Generator().manual_seed(0)).double()

    @property
    def settings(self):
        return {"network": self.name}

    def __call__(self, images):
        from aimamba.evaluation.features import Features

        self.seen += len(images)
        found = (images.double().flatten(1) / 255 @ self._matrix).tanh().float()
        return Features(found[:, :6], found[:, 6:], found if self._logits else None)


@pytest.fixture
def plain():
    return Plain


@pytest.fixture(scope="session")
def cache(make_cache) -> Path:
    """The cache folder of all tests here: avatars are drawn once."""
    return make_cache()


@pytest.fixture(autouse=True)
def few_avatars(cache, monkeypatch) -> None:
    from aimamba.data import sets

    monkeypatch.setattr(sets, "STYLES", STYLES)
    monkeypatch.setenv("AIMAMBA_CACHE", str(cache))


@pytest.fixture
def folder(tmp_path, pixels) -> Path:
    """Class folders ``cats`` and ``dogs`` of five images each."""
    for index, image in enumerate(pixels(10)):
        place = tmp_path / "folder" / ("cats", "dogs")[index // 5]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
    return tmp_path / "folder"
