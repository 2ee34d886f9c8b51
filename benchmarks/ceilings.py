"""What the machine can do: the rates that every floor is computed with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measurement import Measurement
from benchmarks.timing import repeated

_BUFFER_BYTES = 1 << 30  # far more than any last-level cache
_SHAPES = ((2048, 2048, 2048), (1024, 768, 16384), (1024, 3072, 1536), (4096, 4096, 4096))  # rows, inner, columns
_QUICK_SHAPES = ((64, 64, 64),)


def measure_ceiling(measurement: Measurement) -> dict[str, Any]:
    """Measure read bandwidth, or the rate of matrix products in one dtype.

    Returns:
        Every kernel's or shape's rate under ``rates``, the best of them as ``best``: bytes or operations a second.
    """
    device = torch.device(measurement.device)
    if measurement.subject == "bandwidth":
        rates = _bandwidth(device, 1 << 22 if measurement.quick else _BUFFER_BYTES, measurement.limit_seconds)
    else:
        shapes = _QUICK_SHAPES if measurement.quick else _SHAPES
        limit = measurement.limit_seconds / len(shapes)
        rates = {
            " x ".join(map(str, shape)): _products(shape, measurement.dtype, device, limit / 2) for shape in shapes
        }
    return {"rates": rates, "best": max(rates.values())}


def _bandwidth(device: torch.device, size: int, limit: float) -> dict[str, float]:
    """Bytes a second that one pass over a large buffer reads, by kernel."""
    side = 1 << ((size // 4).bit_length() // 2)
    numbers = torch.rand(size // 4, device=device)
    matrix, vector = numbers.view(-1, side), torch.rand(side, device=device)
    half = numbers.numel() // 2
    out = matrix.new_empty(matrix.shape[0])
    kernels: dict[str, Callable[[], object]] = {
        "sum": numbers.sum,
        "largest": numbers.max,
        "dot product": lambda: torch.dot(numbers[:half], numbers[half:]),
        "matrix times vector": lambda: torch.mv(matrix, vector, out=out),
        "matrix times vector, bfloat16": _narrow(matrix, vector),
    }
    return {
        name: size * (0.5 if "bfloat16" in name else 1.0) / min(repeated(run, device, limit=limit / 5))
        for name, run in kernels.items()
    }


def _narrow(matrix: Tensor, vector: Tensor) -> Callable[[], object]:
    """A matrix of half the bytes times a vector."""
    narrow, short = matrix.bfloat16(), vector.bfloat16()
    return lambda: torch.mv(narrow, short)


def _products(shape: tuple[int, int, int], dtype: str, device: torch.device, limit: float) -> float:
    """Operations a second of one matrix product; a multiplication and an addition are two."""
    rows, inner, columns = shape
    run: Callable[[], object]
    if dtype == "int8":
        left = torch.randint(-100, 100, (rows, inner), dtype=torch.int8, device=device)
        right = torch.randint(-100, 100, (columns, inner), dtype=torch.int8, device=device).t()

        def run() -> Tensor:
            return torch._int_mm(left, right)
    else:
        number = getattr(torch, dtype)
        a, b = (torch.rand(size, inner, device=device, dtype=number) for size in (rows, columns))

        def run() -> Tensor:
            return torch.nn.functional.linear(a, b)

    return 2.0 * rows * inner * columns / min(repeated(run, device, limit=limit))
