"""Backends of scans on CUDA devices: how one is named, and how it is tried before a model relies on it."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from aimamba.errors import ConfigError, suggest

ENVIRONMENT = "AIMAMBA_SCAN"
BACKENDS = ("triton", "mamba-ssm", "fla", "plain")
TRIAL_TOKENS = 70
"""Tokens of a trial: more than a chunk, and not a multiple of one."""

# Relative to the largest number. Two ways of rounding bfloat16 differ by a hundredth; wrong results by much more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}

_log = logging.getLogger(__name__)

Form = Callable[..., tuple[Tensor, Any]]
"""A form of a scan: from its inputs and ``chunk_size`` to outputs and the last state."""


def apply_to(x: Tensor) -> bool:
    """Return whether backends apply: to tokens on a CUDA device, unless the compiler is to see plain operations."""
    return _on_cuda(x) and x.shape[1] > 0 and not torch.compiler.is_compiling()


def _on_cuda(x: Tensor) -> bool:
    return x.is_cuda


def wanted(name: str | None = None) -> str | None:
    """Return the backend that is named here or by ``AIMAMBA_SCAN``, or None.

    Raises:
        ConfigError: There is no such backend.
    """
    name = name or os.environ.get(ENVIRONMENT)
    if name and name not in BACKENDS:
        raise ConfigError(
            f"scan must be one of {', '.join(BACKENDS)}, got {name!r}{suggest(name, BACKENDS)}; see {ENVIRONMENT}"
        )
    return name or None


def missing(name: str, error: Exception) -> ConfigError:
    """Return the error for a backend whose package cannot be imported."""
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    return ConfigError(f"scan {name!r} cannot be imported ({why}); 'pip install aimamba[{name}]' brings it")


def trial(
    open_form: Callable[[], Form], plain: Form, make_inputs: Callable[[], dict[str, Tensor]], *, chunk_size: int = 64
) -> str | None:
    """Compare a backend with plain operations, forward and backward, and return what is wrong with it, or None.

    This finds kernels that do not compile and kernels with wrong results, and compiles what a model will use. It runs
    in a thread, outside the caller's autocast, checkpointing and inference mode.

    Args:
        open_form: Returns the form of the backend.
        plain: The form to compare it with.
        make_inputs: Makes inputs by name, in the order of the form's arguments.
        chunk_size: For both forms.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_compare, open_form, plain, make_inputs, chunk_size).result()


def warn(scan: str, device: torch.device, kernels: str, reason: str) -> None:
    """Log that plain operations are used instead of kernels, and why."""
    _log.warning("%s on %s uses plain operations, not %s: %s", scan, device, kernels, reason)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that launches kernels on a device: Triton takes the current one, which each thread has anew."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _compare(
    open_form: Callable[[], Form], plain: Form, make_inputs: Callable[[], dict[str, Tensor]], chunk_size: int
) -> str | None:
    inputs = make_inputs()
    tensors = list(inputs.values())
    try:
        with on_device(tensors[0].device):
            results = [_results(form, tensors, chunk_size) for form in (open_form(), plain)]
    except Exception as error:  # whatever a compiler, a driver or another version of a package may raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    narrowest = min((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)
    for name, ours, exact in zip(("y", *inputs), *results, strict=True):
        deviation = float((ours - exact).abs().max() / exact.abs().max())
        if not deviation <= _TOLERANCE[narrowest]:
            return f"{name} or its gradient is off by {deviation:.1g} of its largest number"
    return None


def _results(form: Form, inputs: Sequence[Tensor], chunk_size: int) -> list[Tensor]:
    """Return the outputs and, for a fixed gradient of these, the gradients of all inputs, in float32."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y, _ = form(*leaves, None, chunk_size=chunk_size)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach().float(), *(each.float() for each in torch.autograd.grad(y, leaves, slope))]
