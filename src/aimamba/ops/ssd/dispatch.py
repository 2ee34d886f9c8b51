"""The SSD of whole sequences that models run: the fastest form for the device and the dtype.

On a CUDA device there are several backends, which all compute ``aimamba.ops.ssd.reference.ssd_recurrent``:

==========  =====================================================================================================
triton      our own kernels (``aimamba.ops.ssd.triton.chunked``), float32 and bfloat16
mamba-ssm   the kernels of Mamba-2's authors, package ``mamba-ssm``; does not clamp log-decays
fla         simple gated linear attention of flash-linear-attention, package ``flash-linear-attention``
plain       ``aimamba.ops.ssd.autograd``, which every other device uses
==========  =====================================================================================================

The environment variable ``AIMAMBA_SCAN`` names one. Without it, bfloat16 inputs use ``triton`` if a trial on a few
tokens succeeds, and everything else uses ``plain``: in float32 our kernels are not faster. Backends and the outcome of
trials are kept for the life of the process; a failed trial is logged once.

Shape letters: B batch, L tokens, H heads, P head width, N state size.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.errors import ConfigError, suggest
from aimamba.ops import triton as kernels
from aimamba.ops.ssd.autograd import ssd_autograd
from aimamba.ops.ssd.reference import LOWEST_LOG_DECAY, SSDForm

ENVIRONMENT = "AIMAMBA_SCAN"
_TRIAL_TOKENS = 70  # more than a chunk, and not a multiple of one
# Relative to the largest number. Two ways of rounding bfloat16 differ by a hundredth; wrong results by much more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}

_log = logging.getLogger(__name__)


def ssd_scan(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
    *,
    chunk_size: int = 64,
    backend: str | None = None,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Compute ``ssd_recurrent``, with its arguments and results, by the chosen backend; differentiable once.

    Args:
        x: Inputs of the heads.
        dt: Step sizes, positive.
        A: Decay rates, negative.
        B: Input projections, shared by the heads.
        C: Output projections, shared by the heads.
        initial_state: State before the first token; zeros by default.
        chunk_size: Tokens handled at once; changes speed, not results.
        backend: Backend to use on a CUDA device; by default the one that ``AIMAMBA_SCAN`` names.

    Returns:
        Outputs in the dtype of ``x``, and the state after the last token in float32 (float64 for float64 inputs).

    Raises:
        ConfigError: The backend is unknown, or it is named and not installed.
    """
    form: SSDForm = ssd_autograd
    if _on_cuda(x) and x.shape[1] and not torch.compiler.is_compiling():
        form = choose(backend or os.environ.get(ENVIRONMENT), x, B.shape[2], chunk_size)
    return form(x, dt, A, B, C, initial_state, chunk_size=chunk_size)


def choose(name: str | None, x: Float[Tensor, "b l h p"], states: int, chunk_size: int) -> SSDForm:
    """Return the named backend or, without a name, the fastest one that works for these inputs.

    Raises:
        ConfigError: The name is unknown, or the backend is not installed.
    """
    if name:
        if name not in BACKENDS:
            raise ConfigError(
                f"scan must be one of {', '.join(BACKENDS)}, got {name!r}{suggest(name, BACKENDS)}; see {ENVIRONMENT}"
            )
        return BACKENDS[name]()
    if x.dtype != torch.bfloat16 or unsupported(x.device, x.dtype, *x.shape[2:], states, chunk_size):
        return ssd_autograd
    return _triton()


def _on_cuda(x: Tensor) -> bool:
    return x.is_cuda


@cache
def _triton() -> SSDForm:
    if reason := kernels.unsupported():
        raise ConfigError(f"scan 'triton' cannot be used: {reason}; 'pip install aimamba[cuda]' brings it")
    from aimamba.ops.ssd.triton import chunked  # noqa: PLC0415 - imports Triton

    def run(x: Tensor, *inputs: Any, chunk_size: int) -> tuple[Tensor, Tensor]:
        form: SSDForm = chunked.ssd_chunked if x.dtype in chunked.DTYPES else ssd_autograd
        return form(x, *inputs, chunk_size=chunk_size)

    return run


@cache
def _mamba_ssm() -> SSDForm:
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(_missing("mamba-ssm", error)) from error

    def run(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None, *, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        B, C = (tensor.to(x.dtype)[:, :, None] for tensor in (B, C))  # one group
        y, state = mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size, initial_states=initial_state, return_final_states=True
        )
        return y, state.float()

    return run


@cache
def _fla() -> SSDForm:
    try:
        from fla.ops.simple_gla import chunk_simple_gla  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(_missing("fla", error)) from error

    def run(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None, *, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        del chunk_size  # the package chooses its own
        queries, keys = (tensor.to(x.dtype)[:, :, None].expand(-1, -1, x.shape[2], -1) for tensor in (C, B))
        y, state = chunk_simple_gla(
            queries,
            keys,
            (dt[..., None] * x).to(x.dtype),
            (dt * A).clamp(min=LOWEST_LOG_DECAY),
            scale=1.0,
            initial_state=None if initial_state is None else initial_state.mT.float(),
            output_final_state=True,
        )
        return y, state.mT.float()

    return run


def _missing(name: str, error: ImportError) -> str:
    return f"scan {name!r} cannot be imported ({error}); 'pip install aimamba[{name}]' brings it"


BACKENDS: dict[str, Callable[[], SSDForm]] = {
    "triton": _triton,
    "mamba-ssm": _mamba_ssm,
    "fla": _fla,
    "plain": lambda: ssd_autograd,
}


@cache
def unsupported(
    device: torch.device, dtype: torch.dtype, heads: int, width: int, states: int, chunk_size: int
) -> str | None:
    """Return the reason why our kernels cannot be used for such inputs, or None. The reason is logged once.

    Runs the kernels on a few tokens, forward and backward, and compares them with plain operations. This finds kernels
    that do not compile and kernels with wrong results, and compiles what the model will use.
    """
    reason = kernels.unsupported()
    if reason is None:
        with ThreadPoolExecutor(1) as thread:  # outside the caller's autocast, checkpointing and inference mode
            reason = thread.submit(_try_triton, device, dtype, heads, width, states, chunk_size).result()
    if reason is not None:
        _log.warning("the scan on %s uses plain operations, not Triton kernels: %s", device, reason)
    return reason


def _try_triton(
    device: torch.device, dtype: torch.dtype, heads: int, width: int, states: int, chunk_size: int
) -> str | None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    inputs = normal(1, _TRIAL_TOKENS, heads, width), normal(1, _TRIAL_TOKENS, heads), normal(heads)
    x, dt, A = inputs[0].to(dtype), torch.nn.functional.softplus(inputs[1] - 2), -inputs[2].exp()
    B, C = (normal(1, _TRIAL_TOKENS, states).to(dtype) for _ in range(2))
    weight = normal(*x.shape).to(dtype)
    try:
        results = [_results(form, (x, dt, A, B, C), weight, chunk_size) for form in (_triton(), ssd_autograd)]
    except Exception as error:  # whatever a compiler, a driver or another version of Triton may raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    for name, ours, plain in zip(("y", "x", "dt", "A", "B", "C"), *results, strict=True):
        deviation = float((ours - plain).abs().max() / plain.abs().max())
        if not deviation <= _TOLERANCE[dtype]:
            return f"{name} or its gradient is off by {deviation:.1g} of its largest number"
    return None


def _results(form: SSDForm, inputs: tuple[Tensor, ...], weight: Tensor, chunk_size: int) -> list[Tensor]:
    """Return the outputs and the gradients of all inputs, in float32."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y, _ = form(*leaves, None, chunk_size=chunk_size)
    return [y.detach().float(), *(each.float() for each in torch.autograd.grad(y, leaves, weight))]
