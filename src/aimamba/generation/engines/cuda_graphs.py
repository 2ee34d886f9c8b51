"""Decoding on CUDA devices: Triton kernels between matrix products, and each step replayed as one CUDA graph.

A step of a published model launches 100 to 200 kernels that run for a few microseconds each. Launching them one by one
from Python takes several times longer than running them; as a graph they run back to back.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.errors import ConfigError
from aimamba.generation.capture import capture
from aimamba.generation.engines import recorded_step
from aimamba.generation.engines.recorded import RecordedEngine, RecordedState
from aimamba.generation.engines.recorded_step import Cache, Form, RecordedStep, triton_operators
from aimamba.models import AiM


def unsupported(model: AiM) -> str | None:
    """Return the reason why this engine cannot decode the model on this machine, or None."""
    weight = model.word_embedding.weight
    if weight.device.type != "cuda":
        return f"it runs on CUDA devices, and the model is on {weight.device.type}"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 or bfloat16, and the model is in {str(weight.dtype).removeprefix('torch.')}"
    return recorded_step.unsupported(model)


class CudaGraphEngine(RecordedEngine):
    """Decodes with a generator on a CUDA device, as ``AiM.init_state`` and ``AiM.step`` do.

    Args:
        model: The generator, in evaluation mode, in float32 or bfloat16. Its weights may change in place.
        form: Form of SSD; by default see ``choose_form``.
        cache: How x of earlier tokens is cached: in the model's dtype, or in 8 bits (``int8``).
        kept: Number of batch sizes whose graphs and memories are kept.
        overlap: Let a kernel start while the one before it still runs, where the device can.

    Raises:
        ConfigError: The engine does not support the model, see ``unsupported``.
    """

    def __init__(
        self,
        model: AiM,
        *,
        form: Form | None = None,
        cache: Cache = "model",
        kept: int = 4,
        overlap: bool = True,
    ) -> None:
        name = "cuda-graphs-int8" if cache == "int8" else "cuda-graphs"
        if reason := unsupported(model):
            raise ConfigError(f"engine '{name}' cannot decode this model: {reason}; choose the engine 'plain'")
        if cache == "int8" and model.config.mixer != "mamba2":
            raise ConfigError(
                f"engine '{name}' cannot decode this model: its 8-bit cache is that of the mixer 'mamba2', and the "
                f"model has {model.config.mixer!r}; choose the engine 'cuda-graphs'"
            )
        step = RecordedStep(model, triton_operators(overlap=overlap), form=form, cache=cache)
        super().__init__(step, capture, kept=kept)

    def step(self, inputs: Int[Tensor, " b"] | Float[Tensor, "b p1 d"], state: RecordedState) -> Float[Tensor, "b v"]:
        """See ``RecordedEngine.step``."""
        with torch.cuda.device(self.model.word_embedding.weight.device):  # Triton launches on the current device
            return super().step(inputs, state)
