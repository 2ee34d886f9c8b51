"""The best rates that the machine reaches; floors are computed from them."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measurement import Measurement
from benchmarks.timing import repeated

_BUFFER_BYTES = 1 << 30  # far more than any last-level cache
_SHAPES = ((2048, 2048, 2048), (1024, 768, 16384), (1024, 3072, 1536), (4096, 4096, 4096))  # rows, inner, columns
_LARGE = (8192, 8192, 8192)  # a GPU does smaller ones in less time than it takes to begin
_READ_STREAMS = (1, 4, 8, 16)
_ROUNDS = 3
_COPY = "copy"
_SOURCE = Path(__file__).with_name("stream.cpp")
_QUICK_SHAPES = ((64, 64, 64),)


def measure_ceiling(measurement: Measurement) -> dict[str, Any]:
    """Measure read bandwidth, or the rate of matrix products in one dtype.

    Returns:
        The rate of every kernel or shape under ``rates`` and the best under ``best``, in bytes or operations per
        second.
    """
    device = torch.device(measurement.device)
    if measurement.subject == "bandwidth":
        rates = _bandwidth(device, 1 << 22 if measurement.quick else _BUFFER_BYTES, measurement.limit_seconds)
    else:
        shapes = _SHAPES if device.type == "cpu" else (*_SHAPES, _LARGE)
        shapes = _QUICK_SHAPES if measurement.quick else shapes
        limit = measurement.limit_seconds / len(shapes)
        rates = {
            " x ".join(map(str, shape)): _products(shape, measurement.dtype, device, limit / 2) for shape in shapes
        }
    return {"rates": rates, "best": max(rates.values())}


def _bandwidth(device: torch.device, size: int, limit: float) -> dict[str, float]:
    """Return the bytes per second of a pass over a large buffer, by kernel; a copy, which also writes, counts twice."""
    side = 1 << ((size // 4).bit_length() // 2)
    numbers = torch.rand(size // 4, device=device)
    matrix, vector = numbers.view(-1, side), torch.rand(side, device=device)
    half = numbers.numel() // 2
    out, copied = matrix.new_empty(matrix.shape[0]), torch.empty_like(numbers)
    kernels: dict[str, Callable[[], object]] = {
        "sum": numbers.sum,
        "largest": numbers.max,
        "dot product": lambda: torch.dot(numbers[:half], numbers[half:]),
        "matrix times vector": lambda: torch.mv(matrix, vector, out=out),
        _COPY: lambda: copied.copy_(numbers),
    }
    with _compiled_readers(numbers) as compiled:
        kernels |= compiled
        rounds = _ROUNDS  # kernels alternate, so that noise does not favour one of them
        taken: dict[str, list[float]] = {name: [] for name in kernels}
        for _ in range(rounds):
            for name, run in kernels.items():
                taken[name] += repeated(run, device, limit=limit / rounds / len(kernels), least=1)
    return {name: size * (2 if name == _COPY else 1) / min(each) for name, each in taken.items()}


@contextmanager
def _compiled_readers(numbers: Tensor) -> Iterator[dict[str, Callable[[], object]]]:
    """Yield kernels of ``stream.cpp`` that read several streams at once; none on a GPU or without a C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None or numbers.device.type != "cpu":
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "stream.so"
        flags = ["-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-o", str(library)]
        done = subprocess.run([compiler, *flags, str(_SOURCE)], capture_output=True, check=False)
        if done.returncode != 0:
            yield {}
            return
        read = ctypes.CDLL(str(library)).read_stream
        read.argtypes, read.restype = [ctypes.c_void_p, *[ctypes.c_size_t] * 3], ctypes.c_uint64
        count, threads = numbers.numel() // 2, torch.get_num_threads()
        yield {
            f"C++, {streams} places at once": lambda streams=streams: read(numbers.data_ptr(), count, threads, streams)
            for streams in _READ_STREAMS
        }


def _products(shape: tuple[int, int, int], dtype: str, device: torch.device, limit: float) -> float:
    """Return the operations per second of one matrix product; a multiply-add counts as two."""
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
