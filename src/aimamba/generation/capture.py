"""Record what a function launches on a CUDA device, to launch it again at once."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

Run = Callable[[], Tensor]
"""A computation on fixed tensors that returns its result."""

Record = Callable[[Run], Run]
"""Converts a computation to one that repeats it. It may call the computation several times; the identity will do."""

_WARM_UP_RUNS = 2  # the first compiles kernels and allocates workspaces of libraries, which a capture must not do


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
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
        result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay
