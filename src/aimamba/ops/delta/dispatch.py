"""The gated delta rule of whole sequences that models run.

On a CUDA device in half precision it is the kernel of flash-linear-attention, where this extra is installed and a trial
on a few tokens succeeds. Everything else is ``aimamba.ops.delta.chunked``. ``AIMAMBA_SCAN=plain`` turns the kernel off.

Shape letters: B batch, L tokens, H heads, N features of a key, P features of a value.
"""

from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops import backends, flash_linear_attention
from aimamba.ops.backends import Form
from aimamba.ops.delta.chunked import delta_chunked


def delta_scan(
    q: Float[Tensor, "b l h n"],
    k: Float[Tensor, "b l h n"],
    v: Float[Tensor, "b l h p"],
    log_decay: Float[Tensor, "b l h"],
    beta: Float[Tensor, "b l h"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Compute ``delta_recurrent``, with its arguments and results, by the chosen backend; differentiable once.

    Raises:
        ConfigError: ``AIMAMBA_SCAN`` is unknown, or names a package that is not installed.
    """
    form: Form = delta_chunked
    if backends.apply_to(v):
        shape = *v.shape[2:], k.shape[-1]
        form = flash_linear_attention.choose(
            v, delta_chunked, flash_linear_attention.open_delta, lambda: unsupported(v.device, v.dtype, *shape)
        )
    return form(q, k, v, log_decay, beta, initial_state, chunk_size=chunk_size)


@cache
def unsupported(device: torch.device, dtype: torch.dtype, heads: int, width: int, features: int) -> str | None:
    """Return the reason why the kernel cannot be used for such inputs, or None. The reason is logged once."""
    make_inputs = partial(_trial_inputs, device, dtype, heads, width, features)
    reason = backends.trial(flash_linear_attention.open_delta, delta_chunked, make_inputs)
    if reason is not None:
        backends.warn("the gated delta rule", device, "the kernel of flash-linear-attention", reason)
    return reason


def _trial_inputs(device: torch.device, dtype: torch.dtype, heads: int, width: int, features: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*rest: int) -> Tensor:
        return torch.randn((1, backends.TRIAL_TOKENS, heads, *rest), generator=generator).to(device)

    v, q, k = normal(width).to(dtype), normal(features), F.normalize(normal(features), dim=-1)
    gates = {"log_decay": -F.softplus(normal() - 2), "beta": normal().sigmoid()}
    return {"q": q * features**-0.5, "k": k, "v": v, **gates}
