"""The SSD of training, forward and backward, with every backend.

Each backend is first compared with the plain one in float32: the error of outputs and gradients, relative to the
largest number.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from aimamba.errors import ConfigError
from aimamba.models import AiMConfig
from aimamba.ops.ssd import dispatch as backends
from aimamba.ops.ssd.chunked import ssd_chunked
from benchmarks.measurement import LAYOUTS, Measurement, UnavailableError, first_line
from benchmarks.ours import aim_config
from benchmarks.timing import peak_bytes, repeated, reset_peak, synchronize

GRADIENTS = ("x", "dt", "A", "B", "C")
_ROUNDS, _CALLS = 7, 10
_CHUNKS, _KERNEL_CHUNKS = (16, 32, 64, 128), (32, 64, 128)

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Scan = Callable[..., tuple[Tensor, Tensor]]


def measure_scan(measurement: Measurement) -> dict[str, Any]:
    """Time one backend, or every launch layout of our kernels.

    Returns:
        ``heads``, relative errors under ``off``, times under ``forward_ms`` and ``both_ms`` (with the backward pass),
        ``peak_bytes`` beyond the inputs; for the variant ``layouts`` a list of timings under ``layouts``.
    """
    device, config = torch.device(measurement.device), aim_config(measurement)
    scan = open_backend(measurement.subject)
    inputs, gradient = make_inputs(measurement, config)
    heads, time = inputs[1].shape[2], functools.partial(milliseconds, device=device, limit=measurement.limit_seconds)
    if measurement.variant == LAYOUTS:
        layouts = kernel_layouts if measurement.subject == "triton" else chunk_lengths
        return {"heads": heads, "layouts": list(time_layouts(layouts(scan, inputs, gradient), time))}
    chunk = config.chunk_size
    found: dict[str, Any] = {"heads": heads, "off": compare(scan, inputs, gradient, chunk)}
    with torch.no_grad():
        found["forward_ms"] = time(functools.partial(scan, *inputs, None, chunk_size=chunk))
    both = functools.partial(run, scan, inputs, gradient, chunk)
    return {**found, "both_ms": time(both), "peak_bytes": extra_bytes(both, device)}


def open_backend(name: str) -> Scan:
    """Return a backend by name: ``chunked`` or one of ``aimamba.ops.ssd.dispatch``.

    Raises:
        UnavailableError: It cannot be imported.
    """
    if name == "chunked":
        return ssd_chunked
    try:
        return backends.BACKENDS[name]()
    except ConfigError as error:
        raise UnavailableError(str(error)) from error


def make_inputs(measurement: Measurement, config: AiMConfig) -> tuple[Inputs, Tensor]:
    """Make inputs like those of a new model, slices of one tensor as in use, and a gradient of the outputs."""
    dtype, batch, tokens = getattr(torch, measurement.dtype), measurement.batch, measurement.tokens
    inner, states = config.inner, config.state_size
    heads = inner // config.head_width
    generator = torch.Generator(measurement.device).manual_seed(0)
    made = functools.partial(torch.randn, generator=generator, device=measurement.device)
    x, B, C = made(batch, tokens, inner + 2 * states).to(dtype).split([inner, states, states], dim=-1)
    dt = torch.nn.functional.softplus(made(batch, tokens, heads) - 4)
    A = -1 - 15 * torch.rand(heads, generator=generator, device=measurement.device)
    x = x.unflatten(-1, (heads, config.head_width))
    return (x, dt, A, B, C), made(x.shape).to(dtype)


def run(scan: Scan, inputs: Inputs, gradient: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """Run forward and backward; return outputs and gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y, _ = scan(*leaves, None, chunk_size=chunk)
    return y.detach(), *torch.autograd.grad(y, leaves, gradient)


def compare(scan: Scan, inputs: Inputs, gradient: Tensor, chunk: int) -> dict[str, float]:
    """Return the errors of outputs and gradients against float32, relative to their largest number."""
    wide = tuple(tensor.float() for tensor in inputs)
    exact = run(ssd_chunked, wide, gradient.float(), chunk)  # type: ignore[arg-type]
    found = run(scan, inputs, gradient, chunk)
    return {
        name: float((ours.float() - wanted).abs().max() / wanted.abs().max())
        for name, ours, wanted in zip(("y", *GRADIENTS), found, exact, strict=True)
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
