"""The SSD of whole sequences, by what is best where the tensors are: the one that models train with.

On a CUDA device there are several backends, all of which compute ``aimamba.ops.ssd.chunked.ssd_chunked``:

==========  =====================================================================================================
triton      our own kernels (``aimamba.ops.ssd.triton.chunked``), float32 and bfloat16
mamba-ssm   the kernels of Mamba-2's authors, package ``mamba-ssm``; does not clamp log-decays
fla         simple gated linear attention of flash-linear-attention, package ``flash-linear-attention``
plain       ``aimamba.ops.ssd.autograd``, which is what runs on every other device
==========  =====================================================================================================

``AIMAMBA_SCAN`` in the environment names one. Without it ``triton`` runs in bfloat16 where it can be shown to work, and
``plain`` otherwise: exact products of float32 gain nothing from our kernels.

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
from aimamba.ops.ssd.autograd import ssd_autograd
from aimamba.ops.ssd.reference import LOWEST_LOG_DECAY
from aimamba.ops.triton import unsupported

Scan = Callable[..., tuple[Tensor, Tensor]]

ENVIRONMENT = "AIMAMBA_SCAN"
_TRIAL_TOKENS = 70  # more than a chunk, and not a whole number of them
# Of the largest number. Two ways of rounding bfloat16 differ by a hundredth; what is computed wrongly, by far more.
_NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.05}

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
    """Compute ``ssd_chunked``, with its arguments and results; differentiable once.

    Args:
        x: Inputs of the heads, and so on: see ``aimamba.ops.ssd.reference.ssd_recurrent``.
        dt: ...
        A: ...
        B: ...
        C: ...
        initial_state: ...
        chunk_size: Tokens that are handled at once; changes speed, not results.
        backend: What to use on a CUDA device; by default what ``AIMAMBA_SCAN`` names.

    Raises:
        ConfigError: If the backend is unknown, or named and not there.
    """
    scan: Scan = ssd_autograd
    if _on_cuda(x) and x.shape[1] and not torch.compiler.is_compiling():
        scan = choose(backend or os.environ.get(ENVIRONMENT), x, B.shape[2], chunk_size)
    return scan(x, dt, A, B, C, initial_state, chunk_size=chunk_size)


def choose(name: str | None, x: Float[Tensor, "b l h p"], states: int, chunk_size: int) -> Scan:
    """The named backend, or without a name the best that works for such inputs."""
    if name:
        if name not in BACKENDS:
            raise ConfigError(
                f"scan must be one of {', '.join(BACKENDS)}, got {name!r}{suggest(name, BACKENDS)}; see {ENVIRONMENT}"
            )
        return BACKENDS[name]()
    if x.dtype != torch.bfloat16 or fault(x.device, x.dtype, *x.shape[2:], states, chunk_size):
        return ssd_autograd
    return _triton()


def _on_cuda(x: Tensor) -> bool:
    return x.is_cuda


@cache
def _triton() -> Scan:
    missing = unsupported()
    if missing:
        raise ConfigError(f"scan 'triton' cannot be used: {missing}; 'pip install aimamba[cuda]' brings it")
    from aimamba.ops.ssd.triton import chunked as scan  # noqa: PLC0415 - imports Triton

    def run(x: Tensor, *inputs: Any, chunk_size: int) -> tuple[Tensor, Tensor]:
        form: Scan = scan.ssd_chunked if x.dtype in scan.DTYPES else ssd_autograd
        return form(x, *inputs, chunk_size=chunk_size)

    return run


@cache
def _mamba_ssm() -> Scan:
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
def _fla() -> Scan:
    try:
        from fla.ops.simple_gla import chunk_simple_gla  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(_missing("fla", error)) from error

    def run(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None, *, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        del chunk_size  # it has its own
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


BACKENDS: dict[str, Callable[[], Scan]] = {
    "triton": _triton,
    "mamba-ssm": _mamba_ssm,
    "fla": _fla,
    "plain": lambda: ssd_autograd,
}


@cache
def fault(device: torch.device, dtype: torch.dtype, heads: int, width: int, states: int, chunk_size: int) -> str | None:
    """Try our kernels once on a few tokens; give what is wrong, if anything is, and say so once in the log.

    A kernel that does not compile is found out here, with its backward pass, and so is one whose numbers are wrong.
    What is compiled is what the model will use.
    """
    found = unsupported()
    if found is None:
        with ThreadPoolExecutor(1) as thread:  # where no autocast, checkpoint or inference mode of the caller reaches
            found = thread.submit(_try_triton, device, dtype, heads, width, states, chunk_size).result()
    if found is not None:
        _log.warning("no Triton kernel for the scan on %s, plain operations in its place: %s", device, found)
    return found


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
        numbers = [_outcome(scan, (x, dt, A, B, C), weight, chunk_size) for scan in (_triton(), ssd_autograd)]
    except Exception as error:  # whatever a compiler, a driver or another version of Triton may raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    for name, ours, plain in zip(("y", "x", "dt", "A", "B", "C"), *numbers, strict=True):
        off = float((ours - plain).abs().max() / plain.abs().max())
        if not off <= _NEAR[dtype]:
            return f"{name} or its gradient is off by {off:.1g} of its largest number"
    return None


def _outcome(scan: Scan, inputs: tuple[Tensor, ...], weight: Tensor, chunk_size: int) -> list[Tensor]:
    """The outputs and all gradients of inputs, in float32."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y, _ = scan(*leaves, None, chunk_size=chunk_size)
    return [y.detach().float(), *(each.float() for each in torch.autograd.grad(y, leaves, weight))]
