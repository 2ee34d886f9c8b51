"""Inception v3 as TensorFlow published it on 2015-12-05: the network that defines FID, sFID and the Inception score.

The weights are those of torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``, and the modules have its names.
The graph differs from other implementations of Inception v3 (Szegedy et al., arXiv 1512.00567): 1,008 classes, average
pooling that does not count its padding, and max pooling in the last block. Images are resized to 299 x 299 by the
bilinear rule of TensorFlow 1, which ``interpolate`` does not offer.

Shape letters: B batch, C channels, H W image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.checkpoints.fill import fill
from aimamba.checkpoints.weights import read_tensors

SIDE = 299
POOLED, SPATIAL, CLASSES = 2048, 17 * 17 * 7, 1008

_NORM_EPS = 1e-3
_SPATIAL_CHANNELS = 7  # of mixed_6/conv, which is the first branch of Mixed_6d


class InceptionOutput(NamedTuple):
    """The features that ADM's evaluator uses.

    Attributes:
        pooled: ``pool_3``, (B, 2048).
        spatial: Seven channels of ``mixed_6/conv``, (B, 2023), channels last as TensorFlow has them.
        logits: Of the classes, without the bias, (B, 1008).
    """

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class _Step(NamedTuple):
    """A convolution of a branch; padded so that the map keeps its size, unless the stride is 2."""

    width: int
    kernel: tuple[int, int]
    stride: int = 1


_Branch = tuple[_Step | tuple[_Step, _Step], ...]  # the two of a pair run in parallel
_Pool = Literal["average", "maximum", "reduce"]


def _one(width: int) -> _Step:
    return _Step(width, (1, 1))


def _three(width: int, stride: int = 1) -> _Step:
    return _Step(width, (3, 3), stride)


def _wide(width: int, length: int = 7) -> _Step:
    return _Step(width, (1, length))


def _tall(width: int, length: int = 7) -> _Step:
    return _Step(width, (length, 1))


def _fan(width: int) -> tuple[_Step, _Step]:
    return _wide(width, 3), _tall(width, 3)


def _at_35() -> dict[str, _Branch]:
    return {
        "branch1x1": (_one(64),),
        "branch5x5": (_one(48), _Step(64, (5, 5))),
        "branch3x3dbl": (_one(64), _three(96), _three(96)),
    }


def _to_17() -> dict[str, _Branch]:
    return {"branch3x3": (_three(384, 2),), "branch3x3dbl": (_one(64), _three(96), _three(96, 2))}


def _at_17(width: int) -> dict[str, _Branch]:
    return {
        "branch1x1": (_one(192),),
        "branch7x7": (_one(width), _wide(width), _tall(192)),
        "branch7x7dbl": (_one(width), _tall(width), _wide(width), _tall(width), _wide(192)),
    }


def _to_8() -> dict[str, _Branch]:
    return {
        "branch3x3": (_one(192), _three(320, 2)),
        "branch7x7x3": (_one(192), _wide(192), _tall(192), _three(192, 2)),
    }


def _at_8() -> dict[str, _Branch]:
    return {
        "branch1x1": (_one(320),),
        "branch3x3": (_one(384), _fan(384)),
        "branch3x3dbl": (_one(448), _three(384), _fan(384)),
    }


class Inception(nn.Module):
    """The network; images are uint8 of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, _three(32, 2))
        self.Conv2d_2a_3x3 = Convolution(32, _three(32), padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, _three(64))
        self.Conv2d_3b_1x1 = Convolution(64, _one(80))
        self.Conv2d_4a_3x3 = Convolution(80, _three(192), padded=False)
        self.Mixed_5b = Mixed(192, _at_35(), pool_width=32)
        self.Mixed_5c = Mixed(256, _at_35(), pool_width=64)
        self.Mixed_5d = Mixed(288, _at_35(), pool_width=64)
        self.Mixed_6a = Mixed(288, _to_17(), pool="reduce")
        self.Mixed_6b = Mixed(768, _at_17(128), pool_width=192)
        self.Mixed_6c = Mixed(768, _at_17(160), pool_width=192)
        self.Mixed_6d = Mixed(768, _at_17(160), pool_width=192)
        self.Mixed_6e = Mixed(768, _at_17(192), pool_width=192)
        self.Mixed_7a = Mixed(768, _to_8(), pool="reduce")
        self.Mixed_7b = Mixed(1280, _at_8(), pool_width=192)
        self.Mixed_7c = Mixed(2048, _at_8(), pool="maximum", pool_width=192)
        self.fc = nn.Linear(POOLED, CLASSES)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> InceptionOutput:
        """Compute the features of images, in the precision of the weights even under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            x = tensorflow1_bilinear(images.to(self.fc.weight.dtype), SIDE)
            x = (x - 128) / 128
            x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
            x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))  # (B, 192, 71, 71)
            x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))  # (B, 288, 35, 35)
            x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # (B, 768, 17, 17)
            spatial = x[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # (B, 2048, 8, 8)
            pooled = x.mean(dim=(2, 3))
            return InceptionOutput(pooled, spatial, pooled @ self.fc.weight.T)


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, step: _Step, *, padded: bool = True) -> None:
        super().__init__()
        padding = (step.kernel[0] // 2, step.kernel[1] // 2) if padded and step.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, step.width, step.kernel, step.stride, padding, bias=False)
        self.bn = BatchNorm(step.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h', w')."""
        return F.relu(self.bn(self.conv(x)))


class BatchNorm(nn.Module):
    """A batch norm in inference: it uses the stored statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias, self.running_mean, self.running_var = (
            nn.Parameter(torch.zeros(width)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=_NORM_EPS)


class Mixed(nn.Module):
    """Parallel branches and one that pools; their maps are concatenated."""

    def __init__(
        self, inputs: int, branches: Mapping[str, _Branch], *, pool: _Pool = "average", pool_width: int = 0
    ) -> None:
        super().__init__()
        self._branches = [self._add(name, inputs, steps) for name, steps in branches.items()]
        self._pool = pool
        if pool != "reduce":
            self.branch_pool = Convolution(inputs, _one(pool_width))

    def _add(self, name: str, inputs: int, steps: _Branch) -> list[list[str]]:
        """Make the convolutions of a branch and return their names, step by step."""
        names: list[list[str]] = []
        for number, step in enumerate(steps, start=1):
            pair = [step] if isinstance(step, _Step) else list(step)
            suffixes = [""] if isinstance(step, _Step) else ["a", "b"]
            names.append([f"{name}_{number}{suffix}" if len(steps) > 1 else name for suffix in suffixes])
            for label, each in zip(names[-1], pair, strict=True):
                self.add_module(label, Convolution(inputs, each))
            inputs = sum(each.width for each in pair)
        return names

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h, w), or to half the height and width."""
        maps = []
        for branch in self._branches:
            hidden = x
            for names in branch:
                hidden = torch.cat([self.get_submodule(name)(hidden) for name in names], dim=1)
            maps.append(hidden)
        if self._pool == "reduce":
            maps.append(F.max_pool2d(x, 3, 2))
        elif self._pool == "maximum":
            maps.append(self.branch_pool(F.max_pool2d(x, 3, 1, padding=1)))
        else:
            maps.append(self.branch_pool(F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)))
        return torch.cat(maps, dim=1)


def tensorflow1_bilinear(images: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c s s"]:
    """Resize as ``tf.image.resize_bilinear`` of TensorFlow 1 does.

    Pixel ``i`` of the result is taken at ``i h / s`` of the image: pixel centres are not aligned, and down-scaling does
    not average.
    """
    for axis in (3, 2):
        length = images.shape[axis]
        positions = torch.arange(side, dtype=torch.float32, device=images.device)
        positions = positions * torch.tensor(length / side, dtype=torch.float32, device=images.device)
        before = positions.long()
        after = (before + 1).clamp(max=length - 1)
        weight = (positions - before).to(images.dtype)
        left, right = images.index_select(axis, before), images.index_select(axis, after)
        images = left + (right - left) * (weight if axis == 3 else weight[:, None])
    return images


def load_inception(path: Path) -> Inception:
    """Load the network, frozen and in evaluation mode.

    Raises:
        CheckpointError: The file is missing, damaged or holds something else.
    """
    tensors = {key: value for key, value in read_tensors(path).items() if "num_batches_tracked" not in key}
    with torch.device("meta"):
        network = Inception()
    fill(network, tensors, where=str(path))
    return network.requires_grad_(False).eval()
