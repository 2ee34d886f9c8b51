"""PSNR against its formula."""

import numpy as np
import pytest
import torch

from aimamba.ops.psnr import psnr


def test_it_is_the_formula():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, 4, 3, 6, 5), dtype=np.uint8)
    expected = 10 * np.log10(255**2 / np.square(x.astype(float) - y).mean(axis=(1, 2, 3)))
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    assert psnr(x, y, data_range=255.0).tolist() == pytest.approx(expected, rel=1e-12)
    assert psnr(x.double() / 255, y.double() / 255, data_range=1.0).tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_images_are_finite():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert psnr(images, images, data_range=255.0).isfinite().all()
