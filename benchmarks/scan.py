"""The scans of training, forward and backward, with every backend: the SSD, and those of the other recurrent mixers.

Each backend is first compared with the plain one in float32: the error of outputs and gradients, relative to the
largest number.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aimamba.errors import ConfigError
from aimamba.models import AiMConfig
from aimamba.ops import flash_linear_attention
from aimamba.ops.delta.chunked import delta_chunked
from aimamba.ops.ssd import dispatch
from aimamba.ops.ssd.chunked import ssd_chunked
from aimamba.ops.trapezoid.chunked import trapezoid_chunked
from benchmarks.measurement import LAYOUTS, Measurement, UnavailableError, first_line
from benchmarks.ours import aim_config
from benchmarks.timing import peak_bytes, repeated, reset_peak, synchronize

_ROUNDS, _CALLS = 7, 10
_CHUNKS, _KERNEL_CHUNKS = (16, 32, 64, 128), (32, 64, 128)

Inputs = tuple[Tensor, ...]
Scan = Callable[..., tuple[Tensor, Any]]


class Recurrence(NamedTuple):
    """What a mixer computes between its projections.

    Attributes:
        inputs: Names of its inputs.
        exact: Its plain form.
        open_fla: Returns its form by flash-linear-attention.
    """

    inputs: tuple[str, ...]
    exact: Scan
    open_fla: Callable[[], Scan]


SSD = Recurrence(("x", "dt", "A", "B", "C"), ssd_chunked, flash_linear_attention.open_ssd)
MIXERS = {
    "gated-deltanet": Recurrence(
        ("q", "k", "v", "log_decay", "beta"), delta_chunked, flash_linear_attention.open_delta
    ),
    "mamba3": Recurrence(
        ("x", "dt", "log_decay", "share", "B", "C"), trapezoid_chunked, flash_linear_attention.open_trapezoid
    ),
}
"""The recurrences of mixers other than Mamba-2; the variants of a measurement."""


def measure_scan(measurement: Measurement) -> dict[str, Any]:
    """Time one backend, or every launch layout of our kernels.

    Returns:
        ``heads``, relative errors under ``off``, times under ``forward_ms`` and ``both_ms`` (with the backward pass),
        ``peak_bytes`` beyond the inputs; for the variant ``layouts`` a list of timings under ``layouts``.
    """
    device, config = torch.device(measurement.device), aim_config(measurement)
    recurrence = MIXERS.get(measurement.variant, SSD)
    scan = open_backend(measurement.subject, recurrence)
    inputs, gradient = make_inputs(measurement, config, recurrence)
    heads, time = inputs[1].shape[2], functools.partial(milliseconds, device=device, limit=measurement.limit_seconds)
    if measurement.variant == LAYOUTS:
        layouts = kernel_layouts if measurement.subject == "triton" else chunk_lengths
        return {"heads": heads, "layouts": list(time_layouts(layouts(scan, inputs, gradient), time))}
    chunk = config.chunk_size
    found: dict[str, Any] = {"heads": heads, "off": compare(recurrence, scan, inputs, gradient, chunk)}
    with torch.no_grad():
        found["forward_ms"] = time(functools.partial(scan, *inputs, None, chunk_size=chunk))
    both = functools.partial(run, scan, inputs, gradient, chunk)
    return {**found, "both_ms": time(both), "peak_bytes": extra_bytes(both, device)}


def open_backend(name: str, recurrence: Recurrence = SSD) -> Scan:
    """Return a backend by name: ``chunked`` or one of ``aimamba.ops.backends``.

    Raises:
        UnavailableError: It cannot be imported.
    """
    if name == "chunked" or (name == "plain" and recurrence is not SSD):
        return recurrence.exact
    try:
        return recurrence.open_fla() if name == "fla" else dispatch.FORMS[name]()
    except ConfigError as error:
        raise UnavailableError(str(error)) from error


def make_inputs(measurement: Measurement, config: AiMConfig, recurrence: Recurrence = SSD) -> tuple[Inputs, Tensor]:
    """Make inputs like those of a new model, and a gradient of the outputs."""
    dtype, tokens = getattr(torch, measurement.dtype), (measurement.batch, measurement.tokens)
    inner, states = config.inner, config.state_size
    heads = inner // config.head_width
    generator = torch.Generator(measurement.device).manual_seed(0)
    made = functools.partial(torch.randn, generator=generator, device=measurement.device)
    dt = F.softplus(made(*tokens, heads) - 4)
    A = -1 - 15 * torch.rand(heads, generator=generator, device=measurement.device)
    if recurrence is SSD:  # slices of one tensor, as in use
        x, B, C = made(*tokens, inner + 2 * states).to(dtype).split([inner, states, states], dim=-1)
        x = x.unflatten(-1, (heads, config.head_width))
        return (x, dt, A, B, C), made(x.shape).to(dtype)
    values = made(*tokens, heads, config.head_width).to(dtype)
    keys, queries = (F.normalize(made(*tokens, heads, states), dim=-1) for _ in range(2))
    share = made(*tokens, heads).sigmoid()
    known = {"q": queries, "k": keys, "v": values, "log_decay": dt * A, "beta": share}
    known |= {"x": values, "dt": dt, "share": share, "B": keys, "C": queries}
    return tuple(known[name] for name in recurrence.inputs), made(values.shape).to(dtype)


def run(scan: Scan, inputs: Inputs, gradient: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """Run forward and backward; return outputs and gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y, _ = scan(*leaves, None, chunk_size=chunk)
    return y.detach(), *torch.autograd.grad(y, leaves, gradient)


def compare(recurrence: Recurrence, scan: Scan, inputs: Inputs, gradient: Tensor, chunk: int) -> dict[str, float]:
    """Return the errors of outputs and gradients against float32, relative to their largest number."""
    wide = tuple(tensor.float() for tensor in inputs)
    exact = run(recurrence.exact, wide, gradient.float(), chunk)
    found = run(scan, inputs, gradient, chunk)
    return {
        name: float((ours.float() - wanted).abs().max() / wanted.abs().max())
        for name, ours, wanted in zip(("y", *recurrence.inputs), found, exact, strict=True)
    }


def milliseconds(call: Callable[[], object], *, device: torch.device, limit: float) -> list[float]:
    """Return the times of one call, sorted. On CUDA several calls are queued, so that starting them costs nothing."""
    if device.type != "cuda":
        return sorted(1000 * each for each in repeated(call, device, limit=limit / 2, warm_up=2, most=10))
    for _ in range(3):
        call()
    taken = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_CALLS):
            call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / _CALLS)
    return sorted(taken)


def extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the most memory that a call needs beyond what is in use before it."""
    synchronize(device)
    reset_peak(device)
    before = peak_bytes(device)
    call()
    synchronize(device)
    return peak_bytes(device) - before


Layout = tuple[dict[str, Any], Callable[[], object]]
"""A description of a call, and the call."""


def chunk_lengths(scan: Scan, inputs: Inputs, gradient: Tensor) -> Iterator[Layout]:
    """Yield forward and backward with several chunk lengths."""
    for chunk in _CHUNKS:
        yield {"kernel": "forward and backward", "chunk": chunk}, functools.partial(run, scan, inputs, gradient, chunk)


def kernel_layouts(_scan: Scan, inputs: Inputs, gradient: Tensor) -> Iterator[Layout]:
    """Yield our kernels with several chunk lengths, warps and stages, one pass at a time."""
    from aimamba.ops.ssd.triton import backward as scan_backward  # noqa: PLC0415 - imports Triton
    from aimamba.ops.ssd.triton import forward as scan_forward  # noqa: PLC0415

    walks = [scan_forward.Launch(*each) for each in itertools.product((4, 8), (1, 2, 3))]
    chunks = [scan_backward.Launch(*each) for each in itertools.product((2, 4, 8), (4, 8, 16), (1, 2))]
    for chunk in _KERNEL_CHUNKS:
        forward = functools.partial(scan_forward.forward, *inputs, None, chunk=chunk)
        calls: list[tuple[str, Any, Callable[[], object]]] = []
        for launch in walks:
            calls.append(("forward", launch, functools.partial(forward, keep=True, launch=launch)))
        _, _, carried = forward(keep=True)
        backward = functools.partial(scan_backward.backward, *inputs, carried, gradient, None, chunk=chunk, first=False)
        for launch in walks:
            calls.append(("backward, states", launch, functools.partial(backward, states_launch=launch)))
        for layout in chunks:
            calls.append(("backward, chunks", layout, functools.partial(backward, chunk_launch=layout)))
        for kernel, layout, call in calls:
            yield {"kernel": kernel, "chunk": chunk, "launch": layout._asdict()}, call


def time_layouts(
    layouts: Iterator[Layout], time: Callable[[Callable[[], object]], list[float]]
) -> Iterator[dict[str, Any]]:
    """Time each layout; one that fails is a result as well, and the others go on."""
    for line, call in layouts:
        try:
            yield {**line, "ms": time(call)}
        except Exception as error:  # some layouts need more than the device has
            yield {**line, "failed": first_line(error)}
