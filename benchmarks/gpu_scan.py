"""The scan of training on a CUDA device: every backend that is installed, forward and backward.

    python benchmarks/gpu_scan.py    benchmarks/results/gpu_scan.json

By what this finds ``aimamba.ops.scan`` is to choose; until then it takes our own kernels in bfloat16.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from aimamba.errors import ConfigError
from aimamba.models import AIM_PRESETS
from aimamba.ops.scan import BACKENDS, ssd_scan
from aimamba.ops.ssd import ssd_chunked

BATCH, TOKENS, CHUNKS = 16, 256, (64, 128)
_REPEATS = 20

Inputs = tuple[Tensor, ...]


def inputs(name: str, dtype: torch.dtype) -> Inputs:
    """Make x (B, L, H, P), dt (B, L, H), A (H), B and C (B, L, N) of a published model, as leaves."""
    config = AIM_PRESETS[name]
    heads = config.expand * config.width // config.head_width
    rng = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device="cuda")

    x, B, C = (
        normal(BATCH, TOKENS, *shape).to(dtype)
        for shape in ((heads, config.head_width), (config.state_size,), (config.state_size,))
    )
    leaves = x, F.softplus(normal(BATCH, TOKENS, heads) - 3), -normal(heads).exp(), B, C
    return tuple(leaf.requires_grad_() for leaf in leaves)


def milliseconds(call: Callable[[], object]) -> list[float]:
    """Times of single calls, after three that warm up."""
    taken = []
    for _ in range(_REPEATS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return taken[3:]


def measure(name: str, backend: str, chunk: int, dtype: torch.dtype) -> dict[str, object]:
    """One line of the results; ``chunked`` is the plain form through autograd."""
    leaves = inputs(name, dtype)

    def forward() -> Tensor:
        if backend == "chunked":
            return ssd_chunked(*leaves, chunk_size=chunk)[0]
        return ssd_scan(*leaves, chunk_size=chunk, backend=backend)[0]

    line: dict[str, object] = {"model": name, "backend": backend, "chunk": chunk, "dtype": str(dtype)}
    try:
        y = forward()
        weight = torch.randn_like(y)
        torch.cuda.reset_peak_memory_stats()
        both = milliseconds(lambda: torch.autograd.grad(forward(), leaves, weight))
        line |= {"forward_ms": statistics.median(milliseconds(forward)), "both_ms": statistics.median(both)}
        line |= {"slowest_ms": max(both), "fastest_ms": min(both), "peak_bytes": torch.cuda.max_memory_allocated()}
    except (ConfigError, RuntimeError) as error:  # not installed, or a shape that it refuses
        line["skipped"] = str(error).splitlines()[0]
    return line


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_scan.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device here")
    lines = []
    for name in ("aim-b", "aim-l", "aim-xl"):
        for dtype in (torch.bfloat16, torch.float32):
            for backend in ("chunked", *BACKENDS):
                for chunk in CHUNKS:
                    lines.append(measure(name, backend, chunk, dtype))
                    print(json.dumps(lines[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "batch": BATCH, "tokens": TOKENS}
    options.out.write_text(json.dumps(about | {"lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
