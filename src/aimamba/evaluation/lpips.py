"""LPIPS between images and their reconstructions, where its weights are there."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from aimamba.config import check
from aimamba.data.sheets import to_float
from aimamba.networks import lpips
from aimamba.networks.perceptual import SMALLEST_OF_VGG16, PerceptualLoss, lpips_vgg16

_AT_ONCE = 16  # pairs of images, whose maps VGG16 holds at once


def open_lpips(source: str, size: int, *, device: torch.device | str = "cpu") -> PerceptualLoss | None:
    """Load the network that ``--lpips`` names.

    Args:
        source: ``auto`` for the installed weights, ``none``, or a source of ``lpips_vgg16``.
        size: Side of the images in pixels.
        device: Where to run.

    Returns:
        The network; None for ``none``, and for ``auto`` where no weights are installed or the images are too small.

    Raises:
        ConfigError: The weights are asked for and not installed.
        CheckpointError: They are missing, damaged, or of another network.
    """
    check(bool(source), "--lpips expects auto, none, or weights, got nothing")
    if source == "none" or (source == "auto" and (size < SMALLEST_OF_VGG16 or not lpips.is_installed())):
        return None
    return lpips_vgg16("lpips" if source == "auto" else source).to(device)


@torch.no_grad()
def lpips_distances(
    network: PerceptualLoss, images: UInt8[Tensor, "b 3 s s"], others: UInt8[Tensor, "b 3 s s"]
) -> Float[Tensor, "b"]:
    """Return the distance of each pair, on the CPU.

    Raises:
        ConfigError: The images have fewer than 16 pixels a side.
    """
    device = next(network.parameters()).device
    pairs = zip(images.split(_AT_ONCE), others.split(_AT_ONCE), strict=True)
    return torch.cat([network.distances(to_float(x.to(device)), to_float(y.to(device))).cpu() for x, y in pairs])


def lpips_settings(network: PerceptualLoss | None) -> dict[str, Any]:
    """Return the weights of LPIPS for a report: a fingerprint, and whether they are the published ones."""
    if network is None:
        return {}
    return {"lpips": {"weights": network.fingerprint, "published": network.fingerprint == lpips.PUBLISHED}}
