"""Feature extractors: networks that turn images into the vectors that metrics compare, behind one protocol."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from aimamba.config import check
from aimamba.data.sheets import to_float
from aimamba.evaluation.weights import inception_weights
from aimamba.networks.efficientnet import PACKAGE, efficientnet_lite0, weights_file
from aimamba.networks.inception import POOLED, SPATIAL, load_inception
from aimamba.networks.perceptual import magnified

Setting = str | int | float | bool


class Features(NamedTuple):
    """Features of a batch of images.

    Attributes:
        vectors: (B, D), for distances between sets.
        spatial: (B, E), part of a feature map before pooling; None if the network has none.
        logits: (B, C) of the network's own classes; None if they are not used.
    """

    vectors: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@runtime_checkable
class Extractor(Protocol):
    """A network that computes features of images.

    Attributes:
        name: Reported with every metric of its features.
        width: D, length of the vectors.
        spatial_width: E, length of the spatial features, or 0.
        batch_size: Images in a batch at which it runs fastest.
        device: Where it runs.
    """

    name: str
    width: int
    spatial_width: int
    batch_size: int
    device: torch.device

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Everything that the features depend on."""

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        """Return the features of a batch."""
        ...


class Lite0:
    """EfficientNet-Lite0's pooled vectors, with weights that are installed with this package.

    Images are magnified as for the perceptual loss, since images of 64 pixels would be only a few points in the
    deepest layers. Images of 128 pixels or more are not changed.
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
        """Return (B, 1280) vectors."""
        return Features(self._network.pooled(magnified(to_float(images.to(self.device)), self._smallest_side)))


class InceptionV3:
    """Inception of 2015-12-05, the network that FID is defined with."""

    name = "inception"
    width = POOLED
    spatial_width = SPATIAL

    def __init__(self, source: str = "inception", *, device: torch.device | str = "cpu") -> None:
        """Load the network.

        Args:
            source: ``inception`` to download the weights once, or the path of the file.
            device: Where to run.

        Raises:
            CheckpointError: The weights are missing, cannot be downloaded, or are not the published ones.
        """
        path, digest = inception_weights(source)
        self.device = torch.device(device)
        self.batch_size = 8 if self.device.type == "cpu" else 64
        self._network = load_inception(path).to(self.device)
        self.settings: Mapping[str, Setting] = {"network": self.name, "weights": path.name, "sha256": digest}

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        """Return (B, 2048) and (B, 2023) vectors, and logits of 1,008 classes."""
        return Features(*self._network(images.to(self.device)))


def open_extractor(name: str, *, device: torch.device | str = "cpu") -> Extractor:
    """Load the network that ``--features`` names: ``lite0``, ``inception``, or the file of Inception's weights.

    Raises:
        ConfigError: The package with lite0's weights is not installed.
        CheckpointError: Inception's weights are missing, cannot be downloaded, or are not the published ones.
    """
    return Lite0(device=device) if name == "lite0" else InceptionV3(name, device=device)
