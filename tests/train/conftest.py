"""Helpers that several tests of training share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

TIMINGS = ("seconds", "pictures_per_second")


@pytest.fixture(scope="session")
def cache(make_cache) -> Path:
    """The cache folder of all tests of training."""
    return make_cache()


@pytest.fixture
def here(tmp_path, monkeypatch, cache) -> Path:
    """A folder of its own for a test to work in."""
    monkeypatch.setenv("AIMAMBA_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rng() -> Callable[..., torch.Generator]:
    """Make a random generator, seeded with 0 by default."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def stacked() -> Callable[..., np.ndarray]:
    """Stack PIL images into one array."""
    return lambda images: np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="session")
def metrics() -> Callable[..., list[dict[str, Any]]]:
    """Read the ``metrics.jsonl`` of a run without timings: all lines, or those of one split without its name."""

    def read(out: Path, split: str | None = None) -> list[dict[str, Any]]:
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        chosen = [line for line in lines if split in (None, line["split"])]
        left_out = TIMINGS if split is None else (*TIMINGS, "split")
        return [{name: value for name, value in line.items() if name not in left_out} for line in chosen]

    return read


@pytest.fixture
def rendered_sheets(monkeypatch) -> Callable[..., list[tuple[Any, dict[str, Any]]]]:
    """Record what a module passes to ``sheet``: the rows of images and the names."""

    def record(module: Any) -> list[tuple[Any, dict[str, Any]]]:
        calls, sheet = [], module.sheet
        monkeypatch.setattr(module, "sheet", lambda rows, **names: calls.append((rows, names)) or sheet(rows, **names))
        return calls

    return record


@pytest.fixture
def continued(tmp_path) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """Train a tiny generator in one go and in two, and return what both checkpoints hold.

    The folders are ``whole`` and ``halves``; six steps with checkpoints after every third, stopped in the fifth.
    """

    def train(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        from ranks_task import Generator, settings

        from aimamba.train.checkpoint import read_checkpoint
        from aimamba.train.fit import fit
        from aimamba.train.interruption import Interrupted

        def stop(_rank: int, step: int) -> None:
            if step == 5:
                raise Interrupted("stopped", 2)

        config = settings(steps=6, checkpoint_every=3, evaluate_every=3)
        fit(Generator(**options), config, tmp_path / "whole")
        with pytest.raises(Interrupted):
            fit(Generator(stop, **options), config, tmp_path / "halves")
        fit(Generator(**options), config, tmp_path / "halves")
        whole, halves = (read_checkpoint(tmp_path / name / "checkpoint.pt").parts for name in ("whole", "halves"))
        return whole, halves

    return train
