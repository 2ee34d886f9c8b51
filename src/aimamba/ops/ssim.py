"""Structural similarity of images (Wang, Bovik, Sheikh and Simoncelli 2004)."""

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
    """Mean of the SSIM map (eq. 13 and 17) over the places where the window lies wholly inside, then over channels.

    Args:
        x: Images.
        y: What they are compared with.
        window: Weights of a neighbourhood, which sum to 1.
        data_range: L of the constants ``(0.01 L)^2`` and ``(0.03 L)^2``: from the least to the greatest value.
        unbiased: Variances with n - 1 below the line, for a uniform window of n places.
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
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (likeness / ((mean_x.square() + mean_y.square() + c1) * (variances + c2))).mean(dim=(1, 2, 3))


def gaussian_window(side: int = 11, sigma: float = 1.5) -> Float[Tensor, "k k"]:
    """The paper's window: a Gaussian of deviation 1.5 on 11 x 11 places, summing to 1."""
    places = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-places.square() / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def uniform_window(side: int = 7) -> Float[Tensor, "k k"]:
    """Equal weights, summing to 1."""
    return torch.full((side, side), 1 / side**2, dtype=torch.float64)
