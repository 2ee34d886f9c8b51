"""Times of kernels on CUDA: many calls in one CUDA graph, on more memory than caches hold."""

import statistics
from collections.abc import Callable, Sequence

import torch

_ENOUGH_BYTES = 512 << 20  # several times any cache


def microseconds(calls: Sequence[Callable[[], object]], *, repeats: int = 10) -> float:
    """Return the time of one call: the median over replays of a CUDA graph of all calls."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    taken = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(1000 * start.elapsed_time(end) / len(calls))
    return statistics.median(taken[2:])


def copies(size: int) -> int:
    """Return how many copies of ``size`` bytes a measurement runs over, so that they do not fit in a cache."""
    return max(4, min(200, -(-_ENOUGH_BYTES // max(size, 1))))
