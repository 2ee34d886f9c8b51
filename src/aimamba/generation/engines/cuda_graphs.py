"""Decoding on a CUDA device: Triton kernels between matrix products, a whole step recorded as one CUDA graph.

A step of a published size is 100 to 200 launches of kernels that run for a few microseconds each. Launched one by one
from Python they take several times longer than they run; replayed as a graph they follow each other closely.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.errors import ConfigError
from aimamba.generation.engines.recorded import RecordedEngine, RecordedState, Run
from aimamba.generation.engines.recorded_step import Form, RecordedStep, triton_operators, unsupported_by_kernels
from aimamba.models import AiM

_WARM_UP_RUNS = 2  # the first compiles kernels and lets libraries take their workspaces, which no graph may do


def unsupported(model: AiM) -> str | None:
    """The reason why this engine cannot decode the model, if there is one."""
    weight = model.word_embedding.weight
    if weight.device.type != "cuda":
        return f"it runs on CUDA devices, and the model is on {weight.device.type}"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 or bfloat16, and the model is in {str(weight.dtype).removeprefix('torch.')}"
    return unsupported_by_kernels(model)


def capture(run: Run) -> Run:
    """Record what ``run`` launches as a CUDA graph; calling the result replays it and gives the same logits tensor."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
        logits = run()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


class CudaGraphEngine(RecordedEngine):
    """Decode a generator that lives on a CUDA device; ``init_state`` and ``step`` are those of ``AiM``.

    Args:
        model: The generator, in evaluation mode, in float32 or bfloat16. Its weights may change in place.
        form: Form of SSD; by default the one that moves fewer bytes over an image.
        kept: Numbers of rows whose graphs and memories are kept.

    Raises:
        ConfigError: The model is not on a CUDA device or in another dtype, or the kernels cannot be had.
    """

    def __init__(self, model: AiM, *, form: Form | None = None, kept: int = 4) -> None:
        if reason := unsupported(model):
            raise ConfigError(f"engine 'cuda-graphs' cannot decode this model: {reason}; choose the engine 'plain'")
        super().__init__(RecordedStep(model, triton_operators(), form=form), capture, kept=kept)

    def step(self, inputs: Int[Tensor, " b"], state: RecordedState) -> Float[Tensor, "b v"]:
        """See ``RecordedEngine.step``."""
        with torch.cuda.device(self.model.word_embedding.weight.device):  # kernels are launched on the current one
            return super().step(inputs, state)
