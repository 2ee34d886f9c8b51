"""Record what a function launches on a CUDA device, to launch it again at once."""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

Run = Callable[[], Tensor]
"""A computation on fixed tensors that returns its result."""

Record = Callable[[Run], Run]
"""Converts a computation to one that repeats it. It may call the computation several times; the identity will do."""

_WARM_UP_RUNS = 2  # the first compiles kernels and allocates workspaces of libraries, which a capture must not do
_one_at_a_time = threading.Lock()  # PyTorch allows one capture in a process


def capture(
    run: Callable[[], Result], *, warm_up: int = _WARM_UP_RUNS, rng: torch.Generator | None = None
) -> Callable[[], Result]:
    """Capture what ``run`` launches as a CUDA graph. Calling the result replays it; the result stays in one place.

    Args:
        run: A computation on fixed tensors.
        warm_up: How often to run it before, on a stream of its own.
        rng: Generator of the random numbers that it draws; reseeding it takes effect on the next replay.
    """
    if warm_up:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                run()
        torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if rng is not None:
        graph.register_generator_state(rng)
    before = torch.cuda.current_stream()
    with _one_at_a_time:
        stream = _stream_of(torch.cuda.current_device())
        try:
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = run()
        except BaseException:
            torch.cuda.set_stream(before)  # PyTorch leaves the capture's in place
            raise

    def replay() -> Result:
        graph.replay()
        return result

    return replay


@cache
def _stream_of(device: int) -> Any:
    """Return the stream for captures on a device. Each stream has memory of its own in libraries, so there is one."""
    return torch.cuda.Stream(device)
