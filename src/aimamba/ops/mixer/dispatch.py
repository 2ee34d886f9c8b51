"""The mixer of whole sequences that models run: kernels where they are supported, else plain operations.

==========  =====================================================================================
native      the C++ kernel (``aimamba.ops.mixer.native.sequence``), on the CPU
triton      our Triton kernels (``aimamba.ops.mixer.triton.sequence``), on CUDA, bfloat16
plain       ``aimamba.ops.mixer.sequence`` with the SSD that ``aimamba.ops.ssd.dispatch`` chooses
==========  =====================================================================================

On CUDA the Triton kernels are used if a trial on a few tokens succeeds; a failed trial is logged once. Where the
environment variable ``AIMAMBA_SCAN`` names a form of the SSD, the plain mixer runs with that.

Shape letters: see ``aimamba.ops.mixer.sequence``.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops import triton as kernels
from aimamba.ops.backends import ENVIRONMENT, on_device
from aimamba.ops.mixer import sequence as plain
from aimamba.ops.mixer.native import sequence as native
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.ssd.dispatch import ssd_scan

_TRIAL_TOKENS = 150  # more than two tiles, and not a multiple of one
_TOLERANCE = 0.05  # of the largest number, from which bfloat16 is usually off by a hundredth
_SLACK = 3.0  # times the error of plain operations in bfloat16: where much cancels, theirs is larger as well

_log = logging.getLogger(__name__)


def mixer_sequence(
    projected: Float[Tensor, "b l z"], weights: MixerWeights, *, state_size: int, chunk_size: int = 64
) -> Float[Tensor, "b l e"]:
    """Compute ``aimamba.ops.mixer.sequence.mixer_sequence``, with its arguments and result, the fastest way.

    May compile the kernels, which takes a few seconds.
    """
    if _triton_applies(projected, weights, state_size):
        from aimamba.ops.mixer.triton import sequence as fused  # noqa: PLC0415 - imports Triton

        return fused.mixer_sequence(projected, weights, state_size=state_size)
    if native.unsupported(projected, weights, state_size) is None:
        return native.mixer_sequence(projected, weights, state_size=state_size)
    return plain.mixer_sequence(projected, weights, state_size=state_size, chunk_size=chunk_size, ssd=ssd_scan)


def _triton_applies(projected: Tensor, weights: MixerWeights, state_size: int) -> bool:
    """Return whether the Triton kernels take these inputs. May compile and try them."""
    if not projected.is_cuda or projected.dtype != torch.bfloat16:
        return False
    if os.environ.get(ENVIRONMENT) or kernels.unsupported() is not None:
        return False
    from aimamba.ops.mixer.triton import sequence as fused  # noqa: PLC0415 - imports Triton

    shape = len(weights.A_log), len(weights.norm_weight), state_size, weights.conv_weight.shape[1]
    return fused.unsupported(projected, weights, state_size) is None and _works(projected.device, *shape)


@cache
def _works(device: torch.device, heads: int, inner: int, states: int, taps: int) -> bool:
    """Return whether the Triton kernels compile for such a mixer and agree with plain operations."""
    with ThreadPoolExecutor(1) as thread:  # outside the caller's autocast, checkpointing and inference mode
        reason = thread.submit(_try, device, heads, inner, states, taps).result()
    if reason is not None:
        _log.warning("the mixer on %s uses plain operations, not Triton kernels: %s", device, reason)
    return reason is None


# What torch.compiler.assume_constant_result does; calling that would import the compiler, which takes seconds.
_works._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _try(device: torch.device, heads: int, inner: int, states: int, taps: int) -> str | None:
    from aimamba.ops.mixer.triton import sequence as fused  # noqa: PLC0415 - imports Triton

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device)

    projected = normal(1, _TRIAL_TOKENS, 2 * inner + 2 * states + heads).bfloat16()
    channels = inner + 2 * states
    convolution = normal(channels, taps, scale=0.5), normal(channels, scale=0.1)
    weights = (*convolution, normal(heads) - 3, normal(heads), normal(heads), 1 + normal(inner, scale=0.1))
    slope = normal(1, _TRIAL_TOKENS, inner).bfloat16()
    slow = partial(plain.mixer_sequence, state_size=states)
    forms = (
        (slow, torch.float32),
        (slow, torch.bfloat16),
        (partial(fused.mixer_sequence, state_size=states), torch.bfloat16),
    )
    try:
        results = []
        for form, dtype in forms:
            leaves = [tensor.detach().requires_grad_() for tensor in (projected.to(dtype), *weights)]
            with on_device(device):
                out = form(leaves[0], MixerWeights(*leaves[1:]))
                found = [out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))]
            results.append([tensor.float() for tensor in found])
    except Exception as error:  # whatever a compiler, a driver or another version of Triton may raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    for name, exact, rounded, ours in zip(("output", "input", *MixerWeights._fields), *results, strict=True):
        deviation, usual = (float((each - exact).abs().max() / exact.abs().max()) for each in (ours, rounded))
        if not deviation <= max(_TOLERANCE, _SLACK * usual):
            return f"{name} or its gradient is off by {deviation:.1g} of its largest number"
    return None
