"""The part of a Mamba-2 mixer between its two projections, for all tokens at once, as Triton kernels.

Forward: convolution with SiLU, step sizes, similarities, SSD with skip, gated norm. Only the outputs of the SSD and one
number a token are kept for the backward pass; the convolution, the step sizes and the similarities, which are cheap,
are computed again. Numbers are float32 in registers and in the dtype of ``projected`` in memory.

Shape letters: see ``aimamba.ops.mixer.sequence``.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from aimamba.ops.conv.triton.causal import MOST_TAPS, causal_conv_silu, causal_conv_silu_backward
from aimamba.ops.mixer.sequence import EPS
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.norm.triton.gated import gated_rms_norm, gated_rms_norm_backward
from aimamba.ops.ssd.triton.quadratic import LAUNCHES, similarities, ssd_quadratic, steps
from aimamba.ops.ssd.triton.quadratic_backward import ssd_quadratic_backward

MOST_TOKENS = 1024  # beyond, the chunked form takes fewer operations
_WIDEST_HEAD, _LARGEST_STATE = 128, 256  # tiles of more do not fit into registers


def unsupported(projected: Float[Tensor, "b l z"], weights: MixerWeights, state_size: int) -> str | None:
    """Return the reason why the kernels cannot take these inputs, or None."""
    inner, heads = len(weights.norm_weight), len(weights.A_log)
    if projected.dtype not in LAUNCHES or not all(weight.dtype in LAUNCHES for weight in weights):
        return "they take float32 or bfloat16"
    if projected.shape[0] == 0 or projected.shape[1] == 0:
        return "there are no tokens"
    if projected.shape[1] > MOST_TOKENS:
        return f"they take at most {MOST_TOKENS} tokens"
    if weights.conv_weight.shape[1] > MOST_TAPS:
        return f"they take at most {MOST_TAPS} taps"
    if inner // heads > _WIDEST_HEAD or state_size > _LARGEST_STATE:
        return f"they take heads of at most {_WIDEST_HEAD} features with at most {_LARGEST_STATE} states"
    return None


def mixer_sequence(
    projected: Float[Tensor, "b l z"], weights: MixerWeights, *, state_size: int
) -> Float[Tensor, "b l e"]:
    """Compute ``aimamba.ops.mixer.sequence.mixer_sequence`` for inputs that are not ``unsupported``.

    While ``torch.compile`` traces it is a custom operator, which the compiler leaves as it is. Otherwise it is not,
    because calling such an operator takes 0.1 ms longer.
    """
    del state_size  # follows from the weights' shapes
    if torch.compiler.is_compiling():
        out, _, _ = _operator(projected, list(weights))
        return out
    return _Mixer.apply(projected, *weights)  # type: ignore[no-untyped-call]


def _forward(projected: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward kernels.

    Returns:
        The output (B, L, E) and, for the backward pass, that of the SSD (B, L, E) and one over the root mean square
        (B, L).
    """
    projected = projected.contiguous()
    w = MixerWeights(*(weight.contiguous() for weight in weights))
    inner, tokens = len(w.norm_weight), LAUNCHES[projected.dtype].tokens
    with torch.cuda.device_of(projected):
        active = causal_conv_silu(projected, w.conv_weight, w.conv_bias, inner)
        tiles = similarities(active, inner, tokens)
        y = ssd_quadratic(active, tiles, steps(projected, w.dt_bias, w.A_log, tokens), w.D, inner)
        out, inverses = gated_rms_norm(y, projected, w.norm_weight, eps=EPS)
    return out, y, inverses


def _backward(dout: Tensor, projected: Tensor, weights: list[Tensor], y: Tensor, inverses: Tensor) -> list[Tensor]:
    """Run the backward kernels: return the gradients of ``projected`` and of every weight."""
    projected = projected.contiguous()
    dout = dout.to(projected.dtype).contiguous()
    w = MixerWeights(*(weight.contiguous() for weight in weights))
    inner, tokens = len(w.norm_weight), LAUNCHES[projected.dtype].tokens
    dprojected = torch.empty_like(projected)
    with torch.cuda.device_of(projected):
        dy, dnorm = gated_rms_norm_backward(dout, y, projected, w.norm_weight, inverses, dprojected)
        active = causal_conv_silu(projected, w.conv_weight, w.conv_bias, inner)
        tiles = similarities(active, inner, tokens)
        step_sizes = steps(projected, w.dt_bias, w.A_log, tokens)
        dactive, scan = ssd_quadratic_backward(
            dy, projected, active, tiles, step_sizes, w.dt_bias, w.A_log, w.D, dprojected
        )
        dtaps, dbias = causal_conv_silu_backward(projected, w.conv_weight, w.conv_bias, dactive, dprojected, inner)
    found = MixerWeights(dtaps, dbias, scan.dt_bias, scan.A_log, scan.skip, dnorm)
    return [dprojected, *(gradient.to(weight.dtype) for gradient, weight in zip(found, weights, strict=True))]


class _Mixer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, *weights: Tensor) -> Tensor:
        out, y, inverses = _forward(projected, list(weights))
        ctx.save_for_backward(projected, *weights, y, inverses)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
        projected, *weights, y, inverses = ctx.saved_tensors
        return tuple(_backward(dout, projected, weights, y, inverses))


@torch.library.custom_op("aimamba::mixer_sequence_triton", mutates_args=())
def _operator(projected: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(projected, weights)


@torch.library.custom_op("aimamba::mixer_sequence_triton_backward", mutates_args=())
def _backward_operator(
    dout: Tensor, projected: Tensor, weights: list[Tensor], y: Tensor, inverses: Tensor
) -> list[Tensor]:
    dprojected, *dweights = _backward(dout, projected, weights, y, inverses)
    return [dprojected, *(tensor.clone() for tensor in dweights)]  # results of an operator must not share memory


@_operator.register_fake
def _(projected: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = projected.shape
    out = projected.new_empty(batch, length, len(weights[-1]))
    return out, torch.empty_like(out), projected.new_empty(batch, length, dtype=torch.float32)


@_backward_operator.register_fake
def _(dout: Tensor, projected: Tensor, weights: list[Tensor], y: Tensor, inverses: Tensor) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (projected, *weights)]


def _save(ctx: Any, inputs: tuple[Tensor, list[Tensor]], output: tuple[Tensor, Tensor, Tensor]) -> None:
    projected, weights = inputs
    _, y, inverses = output
    ctx.save_for_backward(projected, *weights, y, inverses)


def _gradients(ctx: Any, dout: Tensor, *unused: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    projected, *weights, y, inverses = ctx.saved_tensors
    dprojected, *dweights = _backward_operator(dout, projected, weights, y, inverses)
    return dprojected, dweights


_operator.register_autograd(_gradients, setup_context=_save)
