"""Record what a function launches on a CUDA device, to launch it again at once."""

from collections.abc import Callable

import torch
from torch import Tensor

Run = Callable[[], Tensor]
"""A computation on fixed tensors that returns its result."""

Record = Callable[[Run], Run]
"""Converts a computation to one that repeats it. It may call the computation several times; the identity will do."""

_WARM_UP_RUNS = 2  # the first compiles kernels and allocates workspaces of libraries, which a capture must not do


def capture(run: Run) -> Run:
    """Capture what ``run`` launches as a CUDA graph. Calling the result replays it; the result stays in one tensor."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
