"""The tokenizer's decoder in PyTorch with fewer products, for all devices and dtypes.

Shape letters: B batch, C channels, h w grid of a level.
"""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aimamba.models.vq import Decoder, SwishNorm, Upsample
from aimamba.ops.norm.group import group_norm


def fold_upsampling(decoder: Decoder) -> Decoder:
    """Return a copy of ``decoder`` that computes channels last, with ``FoldedUpsample`` in place of ``Upsample``."""
    decoder = deepcopy(decoder).requires_grad_(False)
    for module in list(decoder.modules()):
        for name, part in module.named_children():
            if isinstance(part, Upsample):
                setattr(module, name, FoldedUpsample(part))
            elif isinstance(part, nn.GroupNorm):
                setattr(module, name, ChannelsLastNorm(part))
    return decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs


class ChannelsLastNorm(nn.Module):
    """A group norm, with swish if the given one has it, by ``aimamba.ops.norm.group``."""

    def __init__(self, plain: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.groups, self.eps = plain.num_groups, plain.eps
        self.swish = isinstance(plain, SwishNorm)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise (B, C, h, w)."""
        return group_norm(x, self.weight, self.bias, groups=self.groups, eps=self.eps, silu=self.swish)


class FoldedUpsample(nn.Module):
    """``Upsample`` as one 2 x 2 convolution on the small grid, with 4 / 9 of the products.

    On the doubled grid, two neighbouring taps of the 3 x 3 kernel read the same cell of the small grid, so their
    weights are summed in advance. Even and odd rows (and columns) read different pairs of cells: the outputs
    (2 i + a, 2 j + b) have a separate kernel for each (a, b), which reads rows i + a - 1, i + a and columns j + b - 1,
    j + b.
    """

    def __init__(self, plain: Upsample) -> None:
        super().__init__()
        taps = plain.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # parity, cell, tap
        weight = torch.einsum("aip,bjq,kcpq->abkcij", taps, taps, plain.weight)
        self.channels = plain.out_channels
        self.conv = nn.Conv2d(plain.in_channels, 4 * self.channels, 2, padding=1, device="meta")
        self.conv.weight = nn.Parameter(weight.flatten(0, 2), requires_grad=False)
        assert plain.bias is not None
        self.conv.bias = nn.Parameter(plain.bias.repeat(4), requires_grad=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Map (B, C, h, w) to (B, C, 2 h, 2 w)."""
        batch, _, height, width = x.shape
        parts = self.conv(x).permute(0, 2, 3, 1).contiguous()  # (B, h + 1, w + 1, 4 C), as it comes channels last
        image, row, column, _ = parts.stride()
        # Output (2 i + a, 2 j + b) is part (a, b) of cell (i + a, j + b), so a step in a or b is a cell and some parts.
        interleaved = parts.as_strided(
            (batch, height, 2, width, 2, self.channels),
            (image, row, row + 2 * self.channels, column, column + self.channels, 1),
        )
        return interleaved.reshape(batch, 2 * height, 2 * width, self.channels).permute(0, 3, 1, 2)
