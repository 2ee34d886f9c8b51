"""The structural similarity (SSIM) of images (Wang, Bovik, Sheikh and Simoncelli, 2004)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_K1, _K2 = 0.01, 0.03


def ssim(
    x: Float[Tensor, "b c h w"],
    y: Float[Tensor, "b c h w"],
    window: Float[Tensor, "k l"],
    *,
    data_range: float,
    unbiased: bool = False,
) -> Float[Tensor, " b"]:
    """Return the mean SSIM (eq. 13 and 17) of each pair, over all channels and all windows inside the image.

    Args:
        x: Images.
        y: Images to compare with.
        window: Weights of the window, which sum to 1.
        data_range: Difference between the largest and the smallest possible value: L in the constants ``(0.01 L)^2``
            and ``(0.03 L)^2``.
        unbiased: Divide variances by n - 1, for a uniform window of n pixels.
    """
    n = window.numel()
    channels = x.shape[1]
    weight = window.to(x).expand(channels, 1, *window.shape)

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values, weight, groups=channels)

    mean_x, mean_y = mean(x), mean(y)
    factor = n / (n - 1) if unbiased else 1.0
    variances = factor * (mean(x * x) + mean(y * y) - mean_x.square() - mean_y.square())
    covariance = factor * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x.square() + mean_y.square() + c1) * (variances + c2))).mean(dim=(1, 2, 3))


def gaussian_window(side: int = 11, sigma: float = 1.5) -> Float[Tensor, "k k"]:
    """Return a Gaussian window that sums to 1; the defaults are the paper's."""
    offsets = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-offsets.square() / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def uniform_window(side: int = 7) -> Float[Tensor, "k k"]:
    """Return a window of equal weights that sum to 1."""
    return torch.full((side, side), 1 / side**2, dtype=torch.float64)
