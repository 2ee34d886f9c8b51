"""The SSD of whole sequences that models run: the fastest form for the device and the dtype.

On a CUDA device there are several backends, which all compute ``aimamba.ops.ssd.reference.ssd_recurrent``:

==========  =====================================================================================================
triton      our own kernels (``aimamba.ops.ssd.triton.chunked``), float32 and bfloat16
mamba-ssm   the kernels of Mamba-2's authors, package ``mamba-ssm``; does not clamp log-decays
fla         simple gated linear attention of flash-linear-attention, ``aimamba.ops.flash_linear_attention``
plain       ``aimamba.ops.ssd.autograd``, which every other device uses
==========  =====================================================================================================

The environment variable ``AIMAMBA_SCAN`` names one. Without it, bfloat16 inputs use ``triton`` if a trial on a few
tokens succeeds, and everything else uses ``plain``: in float32 our kernels are not faster. Backends and the outcome of
trials are kept for the life of the process; a failed trial is logged once.

Shape letters: B batch, L tokens, H heads, P head width, N state size.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.errors import ConfigError
from aimamba.ops import backends, flash_linear_attention
from aimamba.ops import triton as kernels
from aimamba.ops.ssd.autograd import ssd_autograd
from aimamba.ops.ssd.reference import SSDForm


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
    if backends.apply_to(x):
        form = choose(backends.wanted(backend), x, B.shape[2], chunk_size)
    return form(x, dt, A, B, C, initial_state, chunk_size=chunk_size)


def choose(name: str | None, x: Float[Tensor, "b l h p"], states: int, chunk_size: int) -> SSDForm:
    """Return the named backend or, without a name, the fastest one that works for these inputs.

    Raises:
        ConfigError: The backend is not installed.
    """
    if name:
        return FORMS[name]()
    if x.dtype != torch.bfloat16 or unsupported(x.device, x.dtype, *x.shape[2:], states, chunk_size):
        return ssd_autograd
    return _triton()


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
    except Exception as error:  # an installed package may fail in its own way
        raise backends.missing("mamba-ssm", error) from error

    def run(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None, *, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        B, C = (tensor.to(x.dtype)[:, :, None] for tensor in (B, C))  # one group
        y, state = mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size, initial_states=initial_state, return_final_states=True
        )
        return y, state.float()

    return run


FORMS: dict[str, Callable[[], SSDForm]] = {
    "triton": _triton,
    "mamba-ssm": _mamba_ssm,
    "fla": flash_linear_attention.open_ssd,
    "plain": lambda: ssd_autograd,
}


@cache
def unsupported(
    device: torch.device, dtype: torch.dtype, heads: int, width: int, states: int, chunk_size: int
) -> str | None:
    """Return the reason why our kernels cannot be used for such inputs, or None. The reason is logged once."""
    reason = kernels.unsupported()
    if reason is None:
        make_inputs = partial(_trial_inputs, device, dtype, heads, width, states)
        reason = backends.trial(_triton, ssd_autograd, make_inputs, chunk_size=chunk_size)
    if reason is not None:
        backends.warn("the scan", device, "Triton kernels", reason)
    return reason


def _trial_inputs(device: torch.device, dtype: torch.dtype, heads: int, width: int, states: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    tokens = 1, backends.TRIAL_TOKENS
    x, dt, A = normal(*tokens, heads, width), normal(*tokens, heads), normal(heads)
    B, C = (normal(*tokens, states).to(dtype) for _ in range(2))
    return {"x": x.to(dtype), "dt": torch.nn.functional.softplus(dt - 2), "A": -A.exp(), "B": B, "C": C}
