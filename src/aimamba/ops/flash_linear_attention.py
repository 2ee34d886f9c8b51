"""Scans by the kernels of flash-linear-attention, an extra for training on CUDA: ``pip install aimamba[fla]``.

The package has one recurrence with keys, queries and values for each head, with and without the delta rule; keys are
the first axis of its states. Its kernels take half precision. Everything else is left to the plain forms.

Shape letters: B batch, L tokens, H heads, P head width or features of a value, N state size or features of a key.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from aimamba.ops.backends import Form, missing, wanted
from aimamba.ops.delta.chunked import delta_chunked
from aimamba.ops.ssd.reference import LOWEST_LOG_DECAY, SSDForm
from aimamba.ops.trapezoid.chunked import merge, trapezoid_chunked
from aimamba.ops.trapezoid.reference import TrapezoidState

HALF = (torch.bfloat16, torch.float16)


def choose(x: Tensor, plain: Form, open_form: Callable[[], Form], unsupported: Callable[[], str | None]) -> Form:
    """Return the package's form where it is named or, in half precision, where it is installed and works.

    Args:
        x: Inputs, whose dtype decides.
        plain: The form of plain operations.
        open_form: One of the functions below.
        unsupported: Tries the form, and returns the reason why it cannot be used.

    Raises:
        ConfigError: ``AIMAMBA_SCAN`` is unknown, or names the package, which cannot be imported.
    """
    name = wanted()
    if name == "fla":
        return open_form()
    tried = name is None and x.dtype in HALF and is_installed()
    return open_form() if tried and unsupported() is None else plain


@cache
def is_installed() -> bool:
    """Return whether the package is there, without importing it."""
    return importlib.util.find_spec("fla") is not None


@cache
def open_ssd() -> SSDForm:
    """Return the SSD by simple gated linear attention, in any dtype.

    Raises:
        ConfigError: The package cannot be imported.
    """
    simple_gla = _import_simple_gla()

    def ssd(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None, *, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        del chunk_size  # the package chooses its own
        queries, keys = (tensor.to(x.dtype)[:, :, None].expand(-1, -1, x.shape[2], -1) for tensor in (C, B))
        return _gated(simple_gla, queries, keys, (dt[..., None] * x).to(x.dtype), dt * A, initial_state)

    return ssd


@cache
def open_delta() -> Form:
    """Return the gated delta rule, ``aimamba.ops.delta.chunked.delta_chunked``, whose arguments and results it has.

    Raises:
        ConfigError: The package cannot be imported.
    """
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # noqa: PLC0415 - an extra
    except Exception as error:  # an installed package may fail in its own way
        raise missing("fla", error) from error

    def delta(
        q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor | None = None,
        *, chunk_size: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if v.dtype not in HALF:
            return delta_chunked(q, k, v, log_decay, beta, initial_state, chunk_size=chunk_size)
        y, state = chunk_gated_delta_rule(
            q.to(v.dtype),
            k.to(v.dtype),
            v.contiguous(),
            log_decay.clamp(min=LOWEST_LOG_DECAY),
            beta,
            scale=1.0,
            initial_state=_turned(initial_state),
            output_final_state=True,
        )
        return y, state.mT.float()

    return delta


@cache
def open_trapezoid() -> Form:
    """Return the recurrence of Mamba-3, ``aimamba.ops.trapezoid.chunked.trapezoid_chunked``, by gated linear attention.

    Raises:
        ConfigError: The package cannot be imported.
    """
    simple_gla = _import_simple_gla()

    def trapezoid(
        x: Tensor, dt: Tensor, log_decay: Tensor, share: Tensor, B: Tensor, C: Tensor,
        initial_state: TrapezoidState | None = None, *, chunk_size: int,
    ) -> tuple[Tensor, TrapezoidState]:  # fmt: skip
        if x.dtype not in HALF:
            return trapezoid_chunked(x, dt, log_decay, share, B, C, initial_state, chunk_size=chunk_size)
        merged = merge(x, dt, share, B, C, initial_state)
        queries, keys = C.to(x.dtype), B.to(x.dtype)
        y, state = _gated(simple_gla, queries, keys, merged.x, log_decay, merged.state)
        return (y - merged.excess).to(x.dtype), TrapezoidState(state, *merged.latest)

    return trapezoid


def _import_simple_gla() -> Any:
    try:
        from fla.ops.simple_gla import chunk_simple_gla  # noqa: PLC0415 - an extra
    except Exception as error:  # an installed package may fail in its own way
        raise missing("fla", error) from error
    return chunk_simple_gla


def _gated(
    simple_gla: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, state = simple_gla(
        q,
        k,
        v,
        log_decay.clamp(min=LOWEST_LOG_DECAY),
        scale=1.0,
        initial_state=_turned(state),
        output_final_state=True,
    )
    assert state is not None
    return y, state.mT.float()


def _turned(state: Tensor | None) -> Tensor | None:
    """Return a state with its keys first, (B, H, N, P)."""
    return None if state is None else state.mT.float().contiguous()
