"""What is compared in place of pixels: vectors that a trained network finds in a picture, behind one protocol."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from aimamba.config import check
from aimamba.data.sheets import to_float
from aimamba.errors import ConfigError
from aimamba.models.efficientnet import PACKAGE, efficientnet_lite0, weights_file
from aimamba.models.perceptual import magnified

Setting = str | int | float | bool


class Features(NamedTuple):
    """What a network finds in pictures.

    Attributes:
        vectors: (B, D), for distances between sets.
        spatial: (B, E), a part of a map that still knows places; None where the network gives none.
        logits: (B, C) of the network's own classes; None where they are not used.
    """

    vectors: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@runtime_checkable
class Extractor(Protocol):
    """A network that looks at pictures.

    Attributes:
        name: Goes with every number that comes of it.
        width: D.
        spatial_width: E, or 0.
        batch_size: How many pictures it likes at once.
        device: Where it computes.
    """

    name: str
    width: int
    spatial_width: int
    batch_size: int
    device: torch.device

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Everything that its numbers depend on."""

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        """Look at pictures."""
        ...


class Lite0:
    """EfficientNet-Lite0's pooled vectors, from weights that are installed with this package.

    Pictures are magnified as for the perceptual loss, so that those of 64 pixels are more than a few points to the
    deepest layers; 128 and above are seen as they are.
    """

    name = "lite0"
    width = 1280
    spatial_width = 0

    def __init__(self, *, device: torch.device | str = "cpu", smallest_side: int = 128) -> None:
        """Load the network.

        Raises:
            ConfigError: The package with its weights is not installed.
        """
        check(smallest_side >= 1, f"lite0: smallest_side must be at least 1, got {smallest_side}")
        self.device = torch.device(device)
        self.batch_size = 8 if self.device.type == "cpu" else 128  # more at once is slower on CPU
        self._network = efficientnet_lite0().to(self.device)
        self._smallest_side = smallest_side
        self.settings: Mapping[str, Setting] = {
            "network": self.name,
            "weights": PACKAGE,
            "sha256": hashlib.sha256(weights_file().read_bytes()).hexdigest(),
            "smallest_side": smallest_side,
        }

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        """Give (B, 1280) vectors."""
        return Features(self._network.pooled(magnified(to_float(images.to(self.device)), self._smallest_side)))


def open_extractor(name: str, *, device: torch.device | str = "cpu") -> Extractor:
    """Load the network that ``--features`` names.

    Raises:
        ConfigError: There is no such network, or its weights are not installed.
    """
    if name == "lite0":
        return Lite0(device=device)
    raise ConfigError(f"--features must be lite0, got {name!r}")
