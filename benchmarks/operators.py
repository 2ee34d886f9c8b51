"""Time the operators forward and backward: ``python benchmarks/operators.py``; milliseconds, medians of ten."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from aimamba.ops.conv.causal import causal_conv, causal_conv_silu
from aimamba.ops.ssd.autograd import ssd_autograd
from aimamba.ops.ssd.chunked import ssd_chunked


def milliseconds(run: Callable[[], object]) -> float:
    """Median of ten runs after two to warm up."""
    taken = []
    for _ in range(12):
        start = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[2:])


def convolution(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """With silu: ours, shifted products, torch's grouped convolution."""
    channels = shape[2]
    x, gradient = (torch.randn(shape, dtype=dtype) for _ in range(2))
    weight, bias = torch.randn(channels, 4, requires_grad=True), torch.randn(channels, requires_grad=True)
    x.requires_grad_()

    def grouped() -> None:
        padded = F.pad(x, (0, 0, 3, 0)).transpose(1, 2)
        y = F.conv1d(padded, weight[:, None].to(dtype), bias.to(dtype), groups=channels).transpose(1, 2)
        F.silu(y).backward(gradient)

    shifted = milliseconds(lambda: F.silu(causal_conv(x, weight, bias)).backward(gradient))
    ours = milliseconds(lambda: causal_conv_silu(x, weight, bias).backward(gradient))
    print(
        f"convolution and silu {shape} {dtype}: ours {ours:.1f}, "
        f"shifted {shifted:.1f}, grouped {milliseconds(grouped):.1f}"
    )


def scan(shape: tuple[int, int, int, int, int], dtype: torch.dtype, chunk_size: int) -> None:
    """The chunked SSD at (batch, tokens, heads, head width, state)."""
    batch, length, heads, width, state = shape
    x, gradient = (torch.randn(batch, length, heads, width, dtype=dtype) for _ in range(2))
    B, C = (torch.randn(batch, length, state, dtype=dtype) for _ in range(2))
    dt, A = torch.rand(batch, length, heads), -1 - torch.rand(heads)
    inputs = [tensor.requires_grad_() for tensor in (x, dt, A, B, C)]
    plain, efficient = (
        milliseconds(lambda form=form: form(*inputs, chunk_size=chunk_size)[0].backward(gradient))
        for form in (ssd_chunked, ssd_autograd)
    )
    print(f"ssd {shape} {dtype} chunk {chunk_size}: plain {plain:.1f}, efficient {efficient:.1f}")


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((64, 64, 448), (4, 256, 1792)):
            convolution(shape, dtype)
        for chunk_size in (16, 32, 64, 128):
            scan((4, 256, 24, 64, 128), dtype, chunk_size)
