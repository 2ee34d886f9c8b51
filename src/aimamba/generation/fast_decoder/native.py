"""The tokenizer's decoder on CPUs, with the convolution kernel of ``aimamba.ops.conv.native``, in float32.

The kernel reads four times as many weights as a convolution has. So the widest convolutions, which work on the coarsest
grids and take little time, are computed by PyTorch.

Images are decoded one at a time, channels last. Shape letters: H W grid of a level, C channels.
"""

import ctypes
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.generation.fast_decoder.folded import FoldedUpsample
from aimamba.models.vq import Decoder, Level, ResidualBlock, SpatialAttention, Upsample
from aimamba.ops.conv.native import winograd
from aimamba.ops.conv.native.winograd import Convolved, convolve, load_kernel
from aimamba.ops.conv.winograd import PackedConvolution, pack

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PANEL = 32
_MOST_WEIGHTS = 256 * 256  # input times output channels: 9 MiB of packed weights, which fit into caches


def unsupported(decoder: Decoder) -> str | None:
    """Return the reason why the kernel cannot compute ``decoder`` on this machine, or None. May compile the kernel."""
    weight = decoder.stem.weight
    if weight.device.type != "cpu":
        return f"it runs on the CPU, and the model is on {weight.device.type}"
    if weight.dtype not in _DTYPES:
        return f"it takes float32, bfloat16 or float16, and the model is in {str(weight.dtype).removeprefix('torch.')}"
    if reason := winograd.unsupported(decoder.stem.in_channels):
        return reason
    widths = {part.num_channels for part in decoder.modules() if isinstance(part, nn.GroupNorm)}
    if any(width % _PANEL for width in widths):
        return f"the width of every level must be a multiple of {_PANEL}"
    return None if load_kernel() is not None else "no C++ compiler built it (pip install ziglang installs one)"


class NativeDecoder:
    """Computes ``Decoder`` from a float32 copy of its weights. Several threads may call it at once."""

    def __init__(self, decoder: Decoder) -> None:
        """Copy the weights of a decoder that is not ``unsupported``."""
        library = load_kernel()
        assert library is not None
        kernel = self._kernel = _Kernel(library)
        self._dtype = decoder.stem.weight.dtype
        self._patch_size = decoder.patch_size
        self._stem = _make_convolution(decoder.stem, kernel)
        parts: list[nn.Module] = list(decoder.middle)
        for level in decoder.levels:
            assert isinstance(level, Level)
            for i, block in enumerate(level.residual):
                parts += [block, level.attention[i]] if level.attention else [block]
            parts += [] if level.resample is None else [level.resample]
        self._parts = [_prepare(part, kernel) for part in parts]
        self._head = _KernelConvolution(decoder.head, kernel, decoder.norm)
        self._out_channels = decoder.head.out_channels

    def __call__(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Map features to images, in the dtype of the copied weights."""
        return torch.stack([self._decode(one) for one in latents.movedim(1, -1).float()]).to(self._dtype)

    def _decode(self, latents: Float[Tensor, "h w c"]) -> Float[Tensor, "3 H W"]:
        hidden = self._stem(Convolved(latents.contiguous(), latents.new_empty(2, 0)))
        for part in self._parts:
            hidden = part(hidden)
        packed = self._head(hidden)
        image = packed.output[..., : self._out_channels].movedim(-1, 0).clone(memory_format=torch.contiguous_format)
        self._kernel.release(hidden)
        self._kernel.release(packed)
        return F.pixel_shuffle(image, self._patch_size)


class _Kernel:
    """The kernel, with buffers for its outputs that are reused: fresh pages would cost more than the kernel saves."""

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
        """Convolve, and add the output to ``residual`` in place if there is one."""
        out = residual
        if out is None:
            factor = 2 if packed.doubles else 1
            out = self._take((factor * x.shape[0], factor * x.shape[1], packed.bias.shape[0]))
        return convolve(self._library, x, packed, norm=norm, residual=residual, out=out)

    def release(self, x: Convolved) -> None:
        """Reuse the buffer of an output that is not needed any more; two of each shape are kept."""
        free = self._free.setdefault(tuple(x.output.shape), [])
        if len(free) < 2:
            free.append(x.output)

    def _take(self, shape: tuple[int, ...]) -> Tensor:
        try:
            return self._free.setdefault(shape, []).pop()
        except IndexError:
            return torch.empty(shape, dtype=torch.float32)


class _KernelConvolution:
    """A 3 x 3 convolution or ``Upsample`` by the kernel, optionally after a group norm and swish."""

    def __init__(self, plain: nn.Conv2d, kernel: "_Kernel", norm: nn.GroupNorm | None = None) -> None:
        assert plain.bias is not None
        self._kernel = kernel
        self._packed = pack(plain.weight.float(), plain.bias, after_doubling=isinstance(plain, Upsample))
        self._norm = None if norm is None else _GroupNorm(norm)

    def __call__(self, x: Convolved, *, residual: Tensor | None = None) -> Convolved:
        """Convolve, and add the output to ``residual`` in place if there is one."""
        norm = None if self._norm is None else self._norm(x)
        return self._kernel.convolve(x.output, self._packed, norm, residual)


class _TorchConvolution:
    """The same as ``_KernelConvolution``, computed by PyTorch."""

    def __init__(self, plain: nn.Conv2d, norm: nn.GroupNorm | None = None) -> None:
        copy = FoldedUpsample(plain) if isinstance(plain, Upsample) else deepcopy(plain)
        copy = copy.requires_grad_(False).to(torch.float32)
        self._plain = copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self._norm = None if norm is None else _GroupNorm(norm)

    def __call__(self, x: Convolved, *, residual: Tensor | None = None) -> Convolved:
        """Convolve, and add ``residual`` if there is one."""
        hidden = x.output
        if self._norm is not None:
            scale, shift = self._norm(x)
            hidden = F.silu(torch.addcmul(shift, hidden, scale))
        output = self._plain(hidden.movedim(-1, 0)[None])[0].movedim(0, -1)
        return _with_moments(output if residual is None else output + residual)


def _make_convolution(
    plain: nn.Conv2d, kernel: "_Kernel", norm: nn.GroupNorm | None = None
) -> _KernelConvolution | _TorchConvolution:
    if plain.in_channels * plain.out_channels > _MOST_WEIGHTS:
        return _TorchConvolution(plain, norm)
    return _KernelConvolution(plain, kernel, norm)


def _with_moments(output: Float[Tensor, "h w c"]) -> Convolved:
    wide = output.flatten(0, 1).double()
    return Convolved(output.contiguous(), torch.stack([wide.sum(0), wide.square().sum(0)]))


class _GroupNorm:
    """A group norm, as a scale and a shift of every channel computed from the moments of the input."""

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


class _ResidualBlock:
    """``ResidualBlock`` with the kernel. Its output may overwrite its input."""

    def __init__(self, plain: ResidualBlock, kernel: "_Kernel") -> None:
        self._kernel = kernel
        self._first = _make_convolution(plain.conv1, kernel, plain.norm1)
        self._second = _make_convolution(plain.conv2, kernel, plain.norm2)
        self._shortcut = None if plain.shortcut is None else _Projection(plain.shortcut)

    def __call__(self, x: Convolved) -> Convolved:
        hidden = self._first(x)
        output = self._second(hidden, residual=x.output if self._shortcut is None else self._shortcut(x.output))
        self._kernel.release(hidden)
        if output.output is not x.output:
            self._kernel.release(x)
        return output


class _Projection:
    """A 1 x 1 convolution."""

    def __init__(self, plain: nn.Conv2d) -> None:
        assert plain.bias is not None
        self._weight = plain.weight.detach().flatten(1).to(torch.float32, copy=True)
        self._bias = plain.bias.detach().to(torch.float32, copy=True)

    def __call__(self, x: Float[Tensor, "*places c"]) -> Float[Tensor, "*places k"]:
        return F.linear(x, self._weight, self._bias)


class _SpatialAttention:
    """``SpatialAttention`` on a single image."""

    def __init__(self, plain: SpatialAttention) -> None:
        self._norm = _GroupNorm(plain.norm)
        self._q, self._k, self._v, self._out = (_Projection(part) for part in (plain.q, plain.k, plain.v, plain.out))

    def __call__(self, x: Convolved) -> Convolved:
        scale, shift = self._norm(x)
        normed = torch.addcmul(shift, x.output, scale).flatten(0, 1)  # (H W, C)
        q, k, v = (part(normed)[None, None] for part in (self._q, self._k, self._v))
        mixed = self._out(F.scaled_dot_product_attention(q, k, v)[0, 0])
        return _with_moments(x.output + mixed.view_as(x.output))


class _Upsample:
    """``Upsample`` with the kernel."""

    def __init__(self, plain: Upsample, kernel: _Kernel) -> None:
        self._kernel = kernel
        self._convolution = _make_convolution(plain, kernel)

    def __call__(self, x: Convolved) -> Convolved:
        output = self._convolution(x)
        self._kernel.release(x)
        return output


def _prepare(part: nn.Module, kernel: "_Kernel") -> "_ResidualBlock | _SpatialAttention | _Upsample":
    if isinstance(part, ResidualBlock):
        return _ResidualBlock(part, kernel)
    if isinstance(part, SpatialAttention):
        return _SpatialAttention(part)
    assert isinstance(part, Upsample)
    return _Upsample(part, kernel)
