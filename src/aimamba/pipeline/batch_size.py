"""How many images to generate at once on a device, where nobody says it."""

import math

import torch

from aimamba.pipeline.pipeline import Pipeline

_MOST = 256  # measured on an H200, the more the faster
_SLICE = 8  # the decoder's, see ``FastDecoder``
# Of the device's memory, what the rows of a batch remember. A last batch is recorded beside it, as are both without
# guidance where a sweep or an interval asks for that: three times as much in all. The rest is for weights and images.
_SHARE = 0.25


def fitting_batch_size(pipeline: Pipeline, count: int, *, guided: bool, processes: int = 1) -> int | None:
    """Return a number of images that fit on the pipeline's device at once; None where the device does not tell.

    It is the same for every call with the same card, model and number of images. Batches are as equal as can be,
    because a graph is recorded for each number of rows, and every process gets as many.

    Args:
        pipeline: The model; its engine is prepared.
        count: Images to generate in all.
        guided: Whether images are guided; such an image has two rows.
        processes: Processes that share the batches, each with such a device.
    """
    if (total := _memory(pipeline.device)) is None:
        return None
    rows = 2 if guided else 1
    bytes_per_row = max(pipeline.prepare().init_state(1).nbytes, 1)
    most = min(int(_SHARE * total / (rows * bytes_per_row)), _MOST)
    most = max(most - most % _SLICE, 1) if most > _SLICE else max(most, 1)
    rounds = max(1, math.ceil(count / (most * processes)))
    return max(1, math.ceil(count / (rounds * processes)))


def _memory(device: torch.device) -> int | None:
    """Return the bytes of a CUDA device, and None for others."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
