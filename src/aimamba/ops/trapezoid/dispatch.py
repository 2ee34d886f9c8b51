"""The recurrence of Mamba-3 over whole sequences that models run.

On a CUDA device in half precision it is a kernel of flash-linear-attention, where this extra is installed and a trial
on a few tokens succeeds. Everything else is ``aimamba.ops.trapezoid.chunked``. ``AIMAMBA_SCAN=plain`` turns the kernel
off.

Shape letters: B batch, L tokens, H heads, P head width, N state size.
"""

from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops import backends, flash_linear_attention
from aimamba.ops.backends import Form
from aimamba.ops.trapezoid.chunked import trapezoid_chunked
from aimamba.ops.trapezoid.reference import TrapezoidState


def trapezoid_scan(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    log_decay: Float[Tensor, "b l h"],
    share: Float[Tensor, "b l h"],
    B: Float[Tensor, "b l h n"],
    C: Float[Tensor, "b l h n"],
    initial_state: TrapezoidState | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], TrapezoidState]:
    """Compute ``trapezoid_recurrent``, with its arguments and results, by the chosen backend; differentiable once.

    Raises:
        ConfigError: ``AIMAMBA_SCAN`` is unknown, or names a package that is not installed.
    """
    form: Form = trapezoid_chunked
    if backends.apply_to(x):
        shape = *x.shape[2:], B.shape[-1]
        form = flash_linear_attention.choose(
            x, trapezoid_chunked, flash_linear_attention.open_trapezoid, lambda: unsupported(x.device, x.dtype, *shape)
        )
    return form(x, dt, log_decay, share, B, C, initial_state, chunk_size=chunk_size)


@cache
def unsupported(device: torch.device, dtype: torch.dtype, heads: int, width: int, states: int) -> str | None:
    """Return the reason why the kernel cannot be used for such inputs, or None. The reason is logged once."""
    make_inputs = partial(_trial_inputs, device, dtype, heads, width, states)
    reason = backends.trial(flash_linear_attention.open_trapezoid, trapezoid_chunked, make_inputs)
    if reason is not None:
        backends.warn("the recurrence of Mamba-3", device, "the kernel of flash-linear-attention", reason)
    return reason


def _trial_inputs(device: torch.device, dtype: torch.dtype, heads: int, width: int, states: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*rest: int) -> Tensor:
        return torch.randn((1, backends.TRIAL_TOKENS, heads, *rest), generator=generator).to(device)

    x, dt, log_decay = normal(width).to(dtype), F.softplus(normal() - 2), -F.softplus(normal() - 2)
    return {
        "x": x, "dt": dt, "log_decay": log_decay, "share": normal().sigmoid(), "B": normal(states), "C": normal(states)
    }  # fmt: skip
