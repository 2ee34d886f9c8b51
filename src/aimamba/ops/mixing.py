"""The middle of a Mamba-2 mixer, all tokens at once: what stands between its two projections, as one operation.

On CPU a native kernel computes it in one pass, and its gradients in another (``ops/native/mixing.cpp``). It keeps
intermediate numbers in float32 in the cache of a core, where PyTorch's operations write every one of them to memory.

Shape letters: B batch, L tokens, H heads, P head width, E = H P inner width, N state size, C = E + 2 N convolved
channels, K taps.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.conv import causal_conv_silu
from aimamba.ops.native.build import load_library
from aimamba.ops.native.team import parallel_regions
from aimamba.ops.norm import gated_rms_norm_efficient
from aimamba.ops.scan import ssd_scan

_SOURCES = (
    "mixing.cpp", "mixing_forward.h", "mixing_backward.h", "mixing.h", "products.h", "simd.h", "team.h", "threads.h",
)  # fmt: skip
_LANES, _TAPS = 32, 4
_MOST_TOKENS = 512  # beyond, the chunked form takes fewer operations
_EPS = 1e-5


class MixerWeights(NamedTuple):
    """The weights of a mixer that are not projections.

    Attributes:
        conv_weight: Taps of every channel, the latest token's last.
        conv_bias: Added to the convolution.
        dt_bias: Added to the step size before softplus.
        A: Decay rates, negative.
        D: Skip from the SSD's input to its output.
        norm_weight: Scale of the gated norm.
    """

    conv_weight: Float[Tensor, "c k"]
    conv_bias: Float[Tensor, " c"]
    dt_bias: Float[Tensor, " h"]
    A: Float[Tensor, " h"]
    D: Float[Tensor, " h"]
    norm_weight: Float[Tensor, " e"]


def mix(
    projected: Float[Tensor, "b l z"], weights: MixerWeights, *, state_size: int, chunk_size: int = 64
) -> Float[Tensor, "b l e"]:
    """Convolve, apply the SSD, add the skip, gate and normalise (Dao and Gu, arXiv 2405.21060, section 7).

    Args:
        projected: The gate (E), the convolved part (E inputs, N each of B and C) and the step sizes (H) of each token.
        weights: All but the projections.
        state_size: N.
        chunk_size: Tokens that PyTorch's form of the SSD handles at once.

    Returns:
        What the output projection is applied to; differentiable once.
    """
    kernel = None if torch.compiler.is_compiling() else _kernel_for(projected, weights, state_size)
    if kernel is not None:
        return mix_native(kernel, projected, weights, state_size=state_size)
    return mix_plain(projected, weights, state_size=state_size, chunk_size=chunk_size)


def mix_plain(
    projected: Float[Tensor, "b l z"], weights: MixerWeights, *, state_size: int, chunk_size: int = 64
) -> Float[Tensor, "b l e"]:
    """Compute ``mix`` by PyTorch's operations, on any device and in any dtype."""
    heads, inner = len(weights.A), len(weights.norm_weight)
    z, xBC, dt = projected.split([inner, inner + 2 * state_size, heads], dim=-1)
    dt = F.softplus(dt.to(weights.dt_bias.dtype) + weights.dt_bias)
    xBC = causal_conv_silu(xBC, weights.conv_weight, weights.conv_bias)
    x, B, C = xBC.split([inner, state_size, state_size], dim=-1)
    x = x.unflatten(-1, (heads, -1))  # (B, L, H, P)
    y, _ = ssd_scan(x, dt, weights.A.to(dt.dtype), B, C, chunk_size=chunk_size)
    y = y + weights.D.to(y.dtype)[:, None] * x
    return gated_rms_norm_efficient(y.flatten(-2), z, weights.norm_weight, eps=_EPS)


def load_kernel(flags: tuple[str, ...] | None = None) -> ctypes.CDLL | None:
    """The compiled kernel, or None where it cannot be had; see ``aimamba.ops.native.build.load_library``."""
    library = load_library(_SOURCES, flags)
    if library is not None:
        pointers: list[Any] = [ctypes.c_void_p]
        common = [ctypes.c_int, *pointers * 2, ctypes.c_float]  # narrow, shape, inputs, eps
        library.aim_mix.argtypes = [*common, *pointers * 4, ctypes.c_int]
        library.aim_mix_backward.argtypes = [*common, *pointers * 6, ctypes.c_int]
        library.aim_mix.restype = library.aim_mix_backward.restype = None
    return library


def mix_native(
    kernel: ctypes.CDLL, projected: Float[Tensor, "b l z"], weights: MixerWeights, *, state_size: int
) -> Float[Tensor, "b l e"]:
    """Compute ``mix`` by the kernel; ``fits`` says for what."""
    return _Mixing.apply(kernel, state_size, projected, *weights)  # type: ignore[no-untyped-call]


def fits(projected: Float[Tensor, "b l z"], weights: MixerWeights, state_size: int) -> bool:
    """Whether the kernel takes such inputs."""
    inner, heads = len(weights.norm_weight), len(weights.A)
    return (
        projected.device.type == "cpu"
        and projected.dtype in (torch.float32, torch.bfloat16)
        and all(weight.dtype in (torch.float32, torch.bfloat16) for weight in weights)
        and projected.shape[0] > 0
        and 0 < projected.shape[1] <= _MOST_TOKENS
        and inner // heads % _LANES == 0
        and state_size % _LANES == 0
        and weights.conv_weight.shape[1] <= _TAPS
    )


def _kernel_for(projected: Tensor, weights: MixerWeights, state_size: int) -> ctypes.CDLL | None:
    return _the_kernel() if fits(projected, weights, state_size) else None


_the_kernel = cache(load_kernel)


def _pointers(*tensors: Tensor) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


class _Mixing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: ctypes.CDLL, state_size: int, projected: Tensor, *weights: Tensor) -> Tensor:
        taps, *others = weights
        wide = [F.pad(taps.float(), (_TAPS - taps.shape[1], 0)).t().contiguous()]  # (4, C), more taps of zero
        wide += [weight.float().contiguous() for weight in others]
        projected = projected.contiguous()
        batch, length, _ = projected.shape
        heads, inner = len(wide[3]), len(wide[5])
        ssd = torch.empty(batch, length, inner)
        inverse = torch.empty(batch, length)
        out = projected.new_empty(batch, length, inner)
        ctx.narrow = projected.dtype == torch.bfloat16
        ctx.shape = (ctypes.c_int * 5)(batch, length, heads, inner // heads, state_size)
        kernel.aim_mix(
            ctx.narrow, ctx.shape, _pointers(projected, *wide), _EPS,
            ssd.data_ptr(), inverse.data_ptr(), out.data_ptr(), parallel_regions(), torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(projected, *wide, ssd, inverse, out)
        ctx.kernel, ctx.dtypes, ctx.taps = kernel, [weight.dtype for weight in weights], taps.shape[1]
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        projected, *wide, ssd, inverse, out = ctx.saved_tensors
        dout = dout.to(projected.dtype).contiguous()
        parts = [torch.empty(len(ssd), *weight.shape) for weight in wide]
        dprojected = torch.empty_like(projected)
        ctx.kernel.aim_mix_backward(
            ctx.narrow, ctx.shape, _pointers(projected, *wide), _EPS, ssd.data_ptr(), inverse.data_ptr(),
            out.data_ptr(), dout.data_ptr(), _pointers(dprojected, *parts), parallel_regions(), torch.get_num_threads(),
        )  # fmt: skip
        dtaps, *dothers = (part.sum(dim=0) for part in parts)
        gradients = [dtaps[_TAPS - ctx.taps :].t(), *dothers]
        return None, None, dprojected, *(g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))
