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

from aimamba.ops.conv.causal import causal_conv_silu
from aimamba.ops.native.build import load_library
from aimamba.ops.native.team import parallel_regions
from aimamba.ops.norm.rms import gated_rms_norm_efficient
from aimamba.ops.ssd.dispatch import ssd_scan

_SOURCES = (
    "mixer/native/sequence.cpp",
    "mixer/native/sequence_forward.h",
    "mixer/native/sequence_backward.h",
    "mixer/native/sequence.h",
    "native/products.h",
    "native/simd.h",
    "native/team.h",
    "native/threads.h",
)
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
    if fits(projected, weights, state_size) and _has_kernel():
        return mix_native(projected, weights, state_size=state_size)
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


def mix_native(projected: Float[Tensor, "b l z"], weights: MixerWeights, *, state_size: int) -> Float[Tensor, "b l e"]:
    """Compute ``mix`` by the kernel; ``fits`` says for what.

    To PyTorch it is an operator: ``torch.compile`` leaves it as it is and joins what stands around it.
    """
    out, _, _ = _mix(projected, list(weights), state_size)
    return out


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


_the_kernel = cache(load_kernel)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernel() -> bool:
    return _the_kernel() is not None


def _pointers(*tensors: Tensor) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _prepared(projected: Tensor, weights: list[Tensor], state_size: int) -> tuple[Tensor, list[Tensor], Any]:
    """The inputs, the weights and the shape as the kernel takes them: contiguous, float32, numbers of C."""
    taps, *others = weights
    wide = [F.pad(taps.float(), (_TAPS - taps.shape[1], 0)).t().contiguous()]  # (4, C), more taps of zero
    wide += [weight.float().contiguous() for weight in others]
    batch, length, _ = projected.shape
    heads, inner = len(wide[3]), len(wide[5])
    shape = (ctypes.c_int * 5)(batch, length, heads, inner // heads, state_size)
    return projected.contiguous(), wide, shape


def _results(projected: Tensor, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = projected.shape
    ssd = projected.new_empty(batch, length, inner, dtype=torch.float32)
    return projected.new_empty(batch, length, inner), ssd, ssd.new_empty(batch, length)


@torch.library.custom_op("aimamba::mix", mutates_args=(), device_types="cpu")
def _mix(projected: Tensor, weights: list[Tensor], state_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output (B, L, E) and, for the backward pass, the SSD's (B, L, E) and one over the root mean square (B, L)."""
    kernel = _the_kernel()
    assert kernel is not None
    out, ssd, inverse = _results(projected, len(weights[-1]))
    projected, wide, shape = _prepared(projected, weights, state_size)
    kernel.aim_mix(
        projected.dtype == torch.bfloat16, shape, _pointers(projected, *wide), _EPS,
        ssd.data_ptr(), inverse.data_ptr(), out.data_ptr(), parallel_regions(), torch.get_num_threads(),
    )  # fmt: skip
    return out, ssd, inverse


@torch.library.custom_op("aimamba::mix_backward", mutates_args=(), device_types="cpu")
def _mix_backward(
    dout: Tensor, projected: Tensor, weights: list[Tensor], results: list[Tensor], state_size: int
) -> list[Tensor]:
    """Gradients of the inputs and of every weight."""
    kernel, (out, ssd, inverse) = _the_kernel(), results
    assert kernel is not None
    projected, wide, shape = _prepared(projected, weights, state_size)
    dout = dout.to(projected.dtype).contiguous()
    parts = [torch.empty(len(ssd), *weight.shape) for weight in wide]
    dprojected = torch.empty_like(projected)
    kernel.aim_mix_backward(
        projected.dtype == torch.bfloat16, shape, _pointers(projected, *wide), _EPS, ssd.data_ptr(), inverse.data_ptr(),
        out.data_ptr(), dout.data_ptr(), _pointers(dprojected, *parts), parallel_regions(), torch.get_num_threads(),
    )  # fmt: skip
    dtaps, *dothers = (part.sum(dim=0) for part in parts)
    gradients = [dtaps[_TAPS - weights[0].shape[1] :].t().contiguous(), *dothers]
    return [dprojected, *(g.to(weight.dtype) for g, weight in zip(gradients, weights, strict=True))]


@_mix.register_fake
def _(projected: Tensor, weights: list[Tensor], state_size: int) -> tuple[Tensor, Tensor, Tensor]:
    return _results(projected, len(weights[-1]))


@_mix_backward.register_fake
def _(dout: Tensor, projected: Tensor, weights: list[Tensor], results: list[Tensor], state_size: int) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (projected, *weights)]


def _keep(ctx: Any, inputs: tuple[Tensor, list[Tensor], int], output: tuple[Tensor, Tensor, Tensor]) -> None:
    projected, weights, ctx.state_size = inputs
    ctx.save_for_backward(projected, *weights, *output)


def _gradients(ctx: Any, dout: Tensor, *unused: Tensor | None) -> tuple[Tensor, list[Tensor], None]:
    projected, *weights, out, ssd, inverse = ctx.saved_tensors
    dprojected, *dweights = _mix_backward(dout, projected, weights, [out, ssd, inverse], ctx.state_size)
    return dprojected, dweights, None


_mix.register_autograd(_gradients, setup_context=_keep)
