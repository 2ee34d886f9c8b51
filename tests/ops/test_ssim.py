"""SSIM against its formula, window by window."""

import numpy as np
import pytest
import torch

from aimamba.ops.ssim import gaussian_window, ssim, uniform_window


def by_windows(x, y, window, data_range, unbiased):
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    k, n = len(window), window.size
    factor = n / (n - 1) if unbiased else 1
    values = []
    for channel in range(len(x)):
        for i in range(x.shape[1] - k + 1):
            for j in range(x.shape[2] - k + 1):
                a, b = x[channel, i : i + k, j : j + k], y[channel, i : i + k, j : j + k]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum() * factor, (window * (b - mb) ** 2).sum() * factor
                cov = (window * (a - ma) * (b - mb)).sum() * factor
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2)))
    return np.mean(values)


@pytest.mark.parametrize(
    ("window", "data_range", "unbiased"), [(gaussian_window(), 255.0, False), (uniform_window(), 2.0, True)]
)
def test_it_is_the_formula(window, data_range, unbiased):
    rng = np.random.default_rng(0)
    x = rng.random((2, 3, 15, 13)) * data_range
    y = np.clip(x + rng.normal(0, 0.1, x.shape) * data_range, 0, data_range)
    found = ssim(torch.from_numpy(x), torch.from_numpy(y), window, data_range=data_range, unbiased=unbiased)
    for value, a, b in zip(found.tolist(), x, y, strict=True):
        assert value == pytest.approx(by_windows(a, b, window.numpy(), data_range, unbiased), rel=1e-9)


def test_the_windows():
    window = gaussian_window()
    assert window.shape == (11, 11)
    assert float(window.sum()) == pytest.approx(1)
    assert float(window[5, 5] / window[5, 8]) == pytest.approx(np.exp(9 / (2 * 1.5**2)))
    assert float(uniform_window().sum()) == pytest.approx(1)


def test_equal_images():
    x = torch.rand(2, 3, 12, 12)
    torch.testing.assert_close(ssim(x, x, gaussian_window(), data_range=1.0), torch.ones(2))
