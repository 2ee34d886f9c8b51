"""The tokenizer's decoder on CPU through the kernel of ``aimamba.ops.conv.native.winograd``, in float32.

The kernel reads four times as many weights as a convolution has. So the widest convolutions, which stand at the
coarsest grids and take little time, stay with PyTorch.

Shape letters: H W grid of a level, C channels; images go one by one, channels last.
"""

import ctypes
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.generation.fast_decoder.folded import FoldedUpsample
from aimamba.models.vq import Decoder, Level, ResidualBlock, SpatialAttention, Upsample
from aimamba.ops.conv.native.winograd import Convolved, convolve, load_kernel, unsupported
from aimamba.ops.conv.winograd import PackedConvolution, pack

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PANEL = 32
_MOST_WEIGHTS = 256 * 256  # inputs times outputs: 9 MiB in the kernel, which fits into caches


class NativeDecoder:
    """What ``Decoder`` computes, from a float32 copy of its weights. Several threads may call it at once."""

    def __init__(self, decoder: Decoder, kernel: "_Kernel") -> None:
        self._kernel = kernel
        self._dtype = decoder.stem.weight.dtype
        self._patch_size = decoder.patch_size
        self._stem = _convolution(decoder.stem, kernel)
        parts: list[nn.Module] = list(decoder.middle)
        for level in decoder.levels:
            assert isinstance(level, Level)
            for i, block in enumerate(level.residual):
                parts += [block, level.attention[i]] if level.attention else [block]
            parts += [] if level.resample is None else [level.resample]
        self._parts = [_prepared(part, kernel) for part in parts]
        self._head = _Convolution(decoder.head, kernel, decoder.norm)
        self._drawn = decoder.head.out_channels

    @classmethod
    def make(cls, decoder: Decoder) -> "NativeDecoder | None":
        """Prepare ``decoder``, or say None where the kernel cannot be had or cannot compute it."""
        widths = {part.num_channels for part in decoder.modules() if isinstance(part, nn.GroupNorm)}
        if decoder.stem.weight.dtype not in _DTYPES or unsupported(decoder.stem.in_channels):
            return None
        if any(width % _PANEL for width in widths):
            return None
        kernel = load_kernel()
        return None if kernel is None else cls(decoder, _Kernel(kernel))

    def __call__(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images of features, in the dtype of the weights that were copied."""
        return torch.stack([self._draw(one) for one in latents.movedim(1, -1).float()]).to(self._dtype)

    def _draw(self, latents: Float[Tensor, "h w c"]) -> Float[Tensor, "3 H W"]:
        hidden = self._stem(Convolved(latents.contiguous(), latents.new_empty(2, 0)))
        for part in self._parts:
            hidden = part(hidden)
        drawn = self._head(hidden)
        image = drawn.output[..., : self._drawn].movedim(-1, 0).clone(memory_format=torch.contiguous_format)
        self._kernel.give_back(hidden)
        self._kernel.give_back(drawn)
        return F.pixel_shuffle(image, self._patch_size)


class _Kernel:
    """The kernel with memory for its outputs, which is used again: new pages cost more than a convolution saves."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._free: dict[tuple[int, ...], list[Tensor]] = {}

    def convolve(
        self,
        x: Float[Tensor, "h w c"],
        packed: PackedConvolution,
        norm: tuple[Tensor, Tensor] | None,
        residual: Tensor | None,
    ) -> Convolved:
        """Convolve; the output takes the place of ``residual``."""
        out = residual
        if out is None:
            factor = 2 if packed.doubles else 1
            out = self._take((factor * x.shape[0], factor * x.shape[1], packed.bias.shape[0]))
        return convolve(self._library, x, packed, norm=norm, residual=residual, out=out)

    def give_back(self, x: Convolved) -> None:
        """Say that an output is not needed any more; two of each shape are kept."""
        free = self._free.setdefault(tuple(x.output.shape), [])
        if len(free) < 2:
            free.append(x.output)

    def _take(self, shape: tuple[int, ...]) -> Tensor:
        try:
            return self._free.setdefault(shape, []).pop()
        except IndexError:
            return torch.empty(shape, dtype=torch.float32)


class _Convolution:
    """A 3 x 3 convolution by the kernel, or an ``Upsample``; if asked after a group norm and swish."""

    def __init__(self, plain: nn.Conv2d, kernel: "_Kernel", norm: nn.GroupNorm | None = None) -> None:
        assert plain.bias is not None
        self._kernel = kernel
        self._packed = pack(plain.weight.float(), plain.bias, after_doubling=isinstance(plain, Upsample))
        self._norm = None if norm is None else _Norm(norm)

    def __call__(self, x: Convolved, *, residual: Tensor | None = None) -> Convolved:
        """Convolve; the output takes the place of ``residual``, which is added to it."""
        norm = None if self._norm is None else self._norm(x)
        return self._kernel.convolve(x.output, self._packed, norm, residual)


class _WideConvolution:
    """The same by PyTorch."""

    def __init__(self, plain: nn.Conv2d, norm: nn.GroupNorm | None = None) -> None:
        copy = FoldedUpsample(plain) if isinstance(plain, Upsample) else deepcopy(plain)
        copy = copy.requires_grad_(False).to(torch.float32)
        self._plain = copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
        self._norm = None if norm is None else _Norm(norm)

    def __call__(self, x: Convolved, *, residual: Tensor | None = None) -> Convolved:
        """Convolve and add ``residual``."""
        hidden = x.output
        if self._norm is not None:
            scale, shift = self._norm(x)
            hidden = F.silu(torch.addcmul(shift, hidden, scale))
        output = self._plain(hidden.movedim(-1, 0)[None])[0].movedim(0, -1)
        return _with_moments(output if residual is None else output + residual)


def _convolution(
    plain: nn.Conv2d, kernel: "_Kernel", norm: nn.GroupNorm | None = None
) -> _Convolution | _WideConvolution:
    if plain.in_channels * plain.out_channels > _MOST_WEIGHTS:
        return _WideConvolution(plain, norm)
    return _Convolution(plain, kernel, norm)


def _with_moments(output: Float[Tensor, "h w c"]) -> Convolved:
    wide = output.flatten(0, 1).double()
    return Convolved(output.contiguous(), torch.stack([wide.sum(0), wide.square().sum(0)]))


class _Norm:
    """A group norm as a scale and a shift of every channel, from the moments of what it normalises."""

    def __init__(self, plain: nn.GroupNorm) -> None:
        self._weight = plain.weight.detach().to(torch.float64, copy=True)
        self._bias = plain.bias.detach().to(torch.float64, copy=True)
        self._groups, self._eps = plain.num_groups, plain.eps

    def __call__(self, x: Convolved) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        channels = x.moments.shape[1]
        mean, square = x.moments.view(2, self._groups, -1).sum(-1) * (self._groups / x.output.numel())
        rate = (square - mean.square()).clamp_min(0).add(self._eps).rsqrt()
        each = channels // self._groups
        scale = self._weight * rate.repeat_interleave(each)
        return scale.float(), (self._bias - mean.repeat_interleave(each) * scale).float()


class _Block:
    """``ResidualBlock``; its output may take the place of its input."""

    def __init__(self, plain: ResidualBlock, kernel: "_Kernel") -> None:
        self._kernel = kernel
        self._first = _convolution(plain.conv1, kernel, plain.norm1)
        self._second = _convolution(plain.conv2, kernel, plain.norm2)
        self._shortcut = None if plain.shortcut is None else _Projection(plain.shortcut)

    def __call__(self, x: Convolved) -> Convolved:
        hidden = self._first(x)
        output = self._second(hidden, residual=x.output if self._shortcut is None else self._shortcut(x.output))
        self._kernel.give_back(hidden)
        if output.output is not x.output:
            self._kernel.give_back(x)
        return output


class _Projection:
    """A 1 x 1 convolution."""

    def __init__(self, plain: nn.Conv2d) -> None:
        assert plain.bias is not None
        self._weight = plain.weight.detach().flatten(1).to(torch.float32, copy=True)
        self._bias = plain.bias.detach().to(torch.float32, copy=True)

    def __call__(self, x: Float[Tensor, "*places c"]) -> Float[Tensor, "*places k"]:
        return F.linear(x, self._weight, self._bias)


class _Attention:
    """``SpatialAttention``."""

    def __init__(self, plain: SpatialAttention) -> None:
        self._norm = _Norm(plain.norm)
        self._q, self._k, self._v, self._out = (_Projection(part) for part in (plain.q, plain.k, plain.v, plain.out))

    def __call__(self, x: Convolved) -> Convolved:
        scale, shift = self._norm(x)
        normed = torch.addcmul(shift, x.output, scale).flatten(0, 1)  # (H W, C)
        q, k, v = (part(normed)[None, None] for part in (self._q, self._k, self._v))
        mixed = self._out(F.scaled_dot_product_attention(q, k, v)[0, 0])
        return _with_moments(x.output + mixed.view_as(x.output))


def _prepared(part: nn.Module, kernel: "_Kernel") -> "_Block | _Attention | _Doubling":
    if isinstance(part, ResidualBlock):
        return _Block(part, kernel)
    if isinstance(part, SpatialAttention):
        return _Attention(part)
    assert isinstance(part, Upsample)
    return _Doubling(part, kernel)


class _Doubling:
    """``Upsample``."""

    def __init__(self, plain: Upsample, kernel: _Kernel) -> None:
        self._kernel = kernel
        self._convolution = _convolution(plain, kernel)

    def __call__(self, x: Convolved) -> Convolved:
        output = self._convolution(x)
        self._kernel.give_back(x)
        return output
