"""The scan of training on a CUDA device, forward and backward: our kernels, plain operations, other packages.

    python benchmarks/gpu_scan.py              all that can be imported; benchmarks/results/gpu_scan.json
    python benchmarks/gpu_scan.py --layouts    and every layout of our kernels, for the first preset

Each form is first compared with the plain one in float32: outputs and gradients, off by a share of their largest
number.
"""

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aimamba.errors import ConfigError
from aimamba.models import AIM_PRESETS
from aimamba.ops.ssd import dispatch as backends
from aimamba.ops.ssd.chunked import ssd_chunked

BATCH, TOKENS, WIDTH, STATES, CHUNK = 16, 256, 64, 128, 64
PRESETS = ("aim-b", "aim-l", "aim-xl")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DEVICE = "cuda"
ROUNDS, CALLS = 7, 10
GRADIENTS = ("x", "dt", "A", "B", "C")

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Form = Callable[..., tuple[Tensor, Tensor]]


def milliseconds(call: Callable[[], object]) -> list[float]:
    """Times of one call, sorted: several calls wait in line, as in training, so that starting them costs nothing."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / CALLS)
    return sorted(taken)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call needs beyond what is there before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def forms() -> dict[str, Form]:
    """What there is, by name; what cannot be imported is told and left out."""
    found: dict[str, Form] = {"chunked": ssd_chunked}
    for name, opened in backends.BACKENDS.items():
        try:
            found["efficient" if name == "plain" else name] = opened()
        except ConfigError as error:
            print(error)
    return found


def draw(heads: int, dtype: torch.dtype) -> tuple[Inputs, Tensor]:
    """Inputs as a new model has them, slices of one tensor as in use, and a gradient of the outputs."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    inner = heads * WIDTH
    made = functools.partial(torch.randn, generator=generator, device=DEVICE)
    x, B, C = made(BATCH, TOKENS, inner + 2 * STATES).to(dtype).split([inner, STATES, STATES], dim=-1)
    dt = torch.nn.functional.softplus(made(BATCH, TOKENS, heads) - 4)
    A = -1 - 15 * torch.rand(heads, generator=generator, device=DEVICE)
    x = x.unflatten(-1, (heads, WIDTH))
    return (x, dt, A, B, C), made(x.shape).to(dtype)


def run(form: Form, inputs: Inputs, gradient: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y, _ = form(*leaves, None, chunk_size=CHUNK)
    return y.detach(), *torch.autograd.grad(y, leaves, gradient)


def compare(form: Form, heads: int, dtype: torch.dtype) -> dict[str, float]:
    """How far outputs and gradients are from the plain form in float32, by their largest number."""
    inputs, gradient = draw(heads, dtype)
    exact = run(ssd_chunked, tuple(tensor.float() for tensor in inputs), gradient.float())  # type: ignore[arg-type]
    found = run(form, inputs, gradient)
    return {
        name: float((ours.float() - wanted).abs().max() / wanted.abs().max())
        for name, ours, wanted in zip(("y", *GRADIENTS), found, exact, strict=True)
    }


def time_forms(preset: str, heads: int, dtype: str) -> Iterator[dict[str, Any]]:
    """Forward alone, and with the backward pass."""
    inputs, gradient = draw(heads, DTYPES[dtype])
    for name, form in forms().items():
        line: dict[str, Any] = {"preset": preset, "heads": heads, "dtype": dtype, "form": name}
        both = functools.partial(run, form, inputs, gradient)
        try:
            line["off"] = compare(form, heads, DTYPES[dtype])
            with torch.no_grad():
                line["forward_ms"] = milliseconds(functools.partial(form, *inputs, None, chunk_size=CHUNK))
            line["both_ms"], line["peak_bytes"] = milliseconds(both), peak_bytes(both)
        except Exception as error:  # one that fails is a result as well, and the others go on
            line["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
        yield line


def time_layouts(preset: str, heads: int) -> Iterator[dict[str, Any]]:
    """Our kernels in bfloat16 with other chunks, warps and stages, one pass at a time."""
    from aimamba.ops.ssd.triton import backward as scan_backward  # noqa: PLC0415 - where there is a device
    from aimamba.ops.ssd.triton import forward as scan_forward  # noqa: PLC0415

    inputs, gradient = draw(heads, torch.bfloat16)
    walks = [scan_forward.Launch(*each) for each in itertools.product((4, 8), (1, 2, 3))]
    chunks = [scan_backward.Launch(*each) for each in itertools.product((2, 4, 8), (4, 8, 16), (1, 2))]
    for chunk in (32, 64, 128):
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
            line = {"preset": preset, "kernel": kernel, "chunk": chunk, "launch": layout._asdict()}
            try:
                line["ms"] = milliseconds(call)
            except Exception as error:  # some layouts need more than the device has
                line["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
            yield line


def describe(line: dict[str, Any]) -> str:
    """One result in one line."""
    about = " ".join(str(line[key]) for key in ("preset", "dtype", "form", "kernel", "chunk", "launch") if key in line)
    if "failed" in line:
        return f"{about}: {line['failed']}"
    if "ms" in line:
        return f"{about}: {statistics.median(line['ms']):.3f} ms"
    forward, both = (statistics.median(line[key]) for key in ("forward_ms", "both_ms"))
    return (
        f"{about}: forward {forward:.3f} ms, with backward {both:.3f} ms, "
        f"{line['peak_bytes'] / 2**20:.0f} MiB, off by {max(line['off'].values()):.1e}"
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", action="store_true", help="every layout of our kernels as well")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(AIM_PRESETS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_scan.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device")
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "batch": BATCH, "tokens": TOKENS}
    found: list[dict[str, Any]] = []
    heads = {name: AIM_PRESETS[name].width * AIM_PRESETS[name].expand // WIDTH for name in options.presets}
    lines = itertools.chain(
        *(time_forms(name, heads[name], dtype) for dtype in options.dtypes for name in options.presets),
        time_layouts(options.presets[0], heads[options.presets[0]]) if options.layouts else (),
    )
    for line in lines:
        found.append(line)
        print(describe(line), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)  # after each, should time run out
        options.out.write_text(json.dumps({"machine": machine, "scans": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
