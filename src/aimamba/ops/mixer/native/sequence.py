"""The part of a Mamba-2 mixer between its two projections, for all tokens at once, as one C++ kernel on the CPU.

One pass computes the outputs and another one the gradients (``sequence.cpp``). Intermediate numbers stay in the cache
of a core in float32, where PyTorch's operations would write each of them to memory. The kernel is compiled on first use
and kept.

Shape letters: see ``aimamba.ops.mixer.sequence``; K taps.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.mixer.sequence import EPS
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.native.build import load_library
from aimamba.ops.native.team import parallel_regions

_SOURCES = (
    "mixer/native/sequence.cpp",
    "mixer/native/sequence_forward.h",
    "mixer/native/sequence_backward.h",
    "mixer/native/sequence_gradients.h",
    "mixer/native/sequence.h",
    "native/products.h",
    "native/simd.h",
    "native/team.h",
    "native/threads.h",
)
_LANES, _TAPS = 32, 4
_MOST_TOKENS = 512  # beyond, the chunked form takes fewer operations
_DTYPES = (torch.float32, torch.bfloat16)


def load_kernel(flags: tuple[str, ...] | None = None) -> ctypes.CDLL | None:
    """Load the kernel, or return None if it cannot be compiled; see ``aimamba.ops.native.build.load_library``."""
    library = load_library(_SOURCES, flags)
    if library is not None:
        pointers: list[Any] = [ctypes.c_void_p]
        inputs = [ctypes.c_int, *pointers * 2, ctypes.c_float]  # narrow, shape, inputs, eps
        library.aim_mixer_sequence.argtypes = [*inputs, *pointers * 4, ctypes.c_int]
        library.aim_mixer_sequence_backward.argtypes = [*inputs, *pointers * 6, ctypes.c_int]
        library.aim_mixer_sequence.restype = library.aim_mixer_sequence_backward.restype = None
    return library


def unsupported(projected: Float[Tensor, "b l z"], weights: MixerWeights, state_size: int) -> str | None:
    """Return the reason why the kernel cannot take these inputs, or None. Compiles the kernel if needed."""
    inner, heads = len(weights.norm_weight), len(weights.A_log)
    if projected.device.type != "cpu":
        return "it runs on the CPU"
    if projected.dtype not in _DTYPES or not all(weight.dtype in _DTYPES for weight in weights):
        return "it takes float32 or bfloat16"
    if projected.shape[0] == 0 or projected.shape[1] == 0:
        return "there are no tokens"
    if projected.shape[1] > _MOST_TOKENS:
        return f"it takes at most {_MOST_TOKENS} tokens"
    if inner // heads % _LANES or state_size % _LANES:
        return f"head width and state size must be multiples of {_LANES}"
    if weights.conv_weight.shape[1] > _TAPS:
        return f"it takes at most {_TAPS} taps"
    return None if _is_compiled() else "no C++ compiler built it"


def mixer_sequence(
    projected: Float[Tensor, "b l z"], weights: MixerWeights, *, state_size: int
) -> Float[Tensor, "b l e"]:
    """Compute ``aimamba.ops.mixer.sequence.mixer_sequence`` for inputs that are not ``unsupported``.

    It is a custom operator of PyTorch: ``torch.compile`` leaves it as it is and compiles the code around it.
    """
    rates = -weights.A_log.exp()
    inputs = [weights.conv_weight, weights.conv_bias, weights.dt_bias, rates, weights.D, weights.norm_weight]
    out, _, _ = _forward(projected, inputs, state_size)
    return out


@cache
def _kernel() -> ctypes.CDLL | None:
    return load_kernel()


def _is_compiled() -> bool:
    return _kernel() is not None


# What torch.compiler.assume_constant_result does; calling that would import the compiler, which takes seconds.
_is_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _pointers(*tensors: Tensor) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _prepared(projected: Tensor, weights: list[Tensor], state_size: int) -> tuple[Tensor, list[Tensor], Any]:
    """Return the inputs, the weights and the shape as the kernel takes them: contiguous, float32, an array of C."""
    taps, *others = weights
    wide = [F.pad(taps.float(), (_TAPS - taps.shape[1], 0)).t().contiguous()]  # (4, C), missing taps are zero
    wide += [weight.float().contiguous() for weight in others]
    batch, length, _ = projected.shape
    heads, inner = len(wide[3]), len(wide[5])
    shape = (ctypes.c_int * 5)(batch, length, heads, inner // heads, state_size)
    return projected.contiguous(), wide, shape


def _results(projected: Tensor, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = projected.shape
    ssd = projected.new_empty(batch, length, inner, dtype=torch.float32)
    return projected.new_empty(batch, length, inner), ssd, ssd.new_empty(batch, length)


@torch.library.custom_op("aimamba::mixer_sequence", mutates_args=(), device_types="cpu")
def _forward(projected: Tensor, weights: list[Tensor], state_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward kernel; ``weights`` are those of ``MixerWeights`` with A in place of A_log.

    Returns:
        The output (B, L, E) and, for the backward pass, that of the SSD (B, L, E) and one over the root mean square
        (B, L).
    """
    kernel = _kernel()
    assert kernel is not None
    out, ssd, inverse = _results(projected, len(weights[-1]))
    projected, wide, shape = _prepared(projected, weights, state_size)
    kernel.aim_mixer_sequence(
        projected.dtype == torch.bfloat16, shape, _pointers(projected, *wide), EPS,
        ssd.data_ptr(), inverse.data_ptr(), out.data_ptr(), parallel_regions(), torch.get_num_threads(),
    )  # fmt: skip
    return out, ssd, inverse


@torch.library.custom_op("aimamba::mixer_sequence_backward", mutates_args=(), device_types="cpu")
def _backward(
    dout: Tensor, projected: Tensor, weights: list[Tensor], results: list[Tensor], state_size: int
) -> list[Tensor]:
    """Run the backward kernel: return the gradients of ``projected`` and of every weight."""
    kernel, (out, ssd, inverse) = _kernel(), results
    assert kernel is not None
    projected, wide, shape = _prepared(projected, weights, state_size)
    dout = dout.to(projected.dtype).contiguous()
    parts = [torch.empty(len(ssd), *weight.shape) for weight in wide]
    dprojected = torch.empty_like(projected)
    kernel.aim_mixer_sequence_backward(
        projected.dtype == torch.bfloat16, shape, _pointers(projected, *wide), EPS, ssd.data_ptr(), inverse.data_ptr(),
        out.data_ptr(), dout.data_ptr(), _pointers(dprojected, *parts), parallel_regions(), torch.get_num_threads(),
    )  # fmt: skip
    dtaps, *dothers = (part.sum(dim=0) for part in parts)
    gradients = [dtaps[_TAPS - weights[0].shape[1] :].t().contiguous(), *dothers]
    return [dprojected, *(g.to(weight.dtype) for g, weight in zip(gradients, weights, strict=True))]


@_forward.register_fake
def _(projected: Tensor, weights: list[Tensor], state_size: int) -> tuple[Tensor, Tensor, Tensor]:
    return _results(projected, len(weights[-1]))


@_backward.register_fake
def _(dout: Tensor, projected: Tensor, weights: list[Tensor], results: list[Tensor], state_size: int) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (projected, *weights)]


def _save(ctx: Any, inputs: tuple[Tensor, list[Tensor], int], output: tuple[Tensor, Tensor, Tensor]) -> None:
    projected, weights, ctx.state_size = inputs
    ctx.save_for_backward(projected, *weights, *output)


def _gradients(ctx: Any, dout: Tensor, *unused: Tensor | None) -> tuple[Tensor, list[Tensor], None]:
    projected, *weights, out, ssd, inverse = ctx.saved_tensors
    dprojected, *dweights = _backward(dout, projected, weights, [out, ssd, inverse], ctx.state_size)
    return dprojected, dweights, None


_forward.register_autograd(_gradients, setup_context=_save)
