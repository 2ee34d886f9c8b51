"""The peak signal-to-noise ratio (PSNR) of images."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_SMALLEST_ERROR = 1e-10  # mean squared error; equal images have a finite PSNR


def psnr(
    x: Float[Tensor, "b c h w"] | UInt8[Tensor, "b c h w"],
    y: Float[Tensor, "b c h w"] | UInt8[Tensor, "b c h w"],
    *,
    data_range: float,
) -> Float[Tensor, " b"]:
    """Return the PSNR of each pair in dB, computed in float64.

    Args:
        x: Images.
        y: Images to compare with.
        data_range: Difference between the largest and the smallest possible value.
    """
    errors = (x.double() - y.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(data_range**2 / errors.clamp(min=_SMALLEST_ERROR))
