"""Whether Triton kernels can be used here, and how. The kernels are in the ``triton`` folder of each operation.

Importing this package does not import Triton; importing ``functions``, which kernels share, does.
"""

import functools
import os

import torch
from torch import Tensor

_OLDEST = (3, 5)  # 3.4 fails to compile a cumulative sum that is shorter than a program has threads


def unsupported() -> str | None:
    """Return the reason why Triton kernels cannot be used, or None."""
    try:
        import triton  # noqa: PLC0415 - only where it is used
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST:
        return f"Triton {triton.__version__} is too old, expected 3.5 or newer (torch 2.9 brings it)"
    return None


# What torch.compiler.assume_constant_result does; calling that would import the compiler, which takes seconds.
unsupported._dynamo_marked_constant = True  # type: ignore[attr-defined]


def register_options(most: int | None) -> dict[str, int]:
    """Return the launch options of a kernel whose threads have at most ``most`` registers, for more programs at a time.

    AMD's compiler takes no limit.
    """
    return {} if most is None or torch.version.hip is not None else {"maxnreg": most}


@functools.cache
def _device_overlaps(device: torch.device) -> bool:
    """Whether the device can start a kernel before the previous one ends: NVIDIA's, from Hopper on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def overlap_options(tensor: Tensor, wanted: bool) -> dict[str, bool]:
    """Return the launch options of a kernel that starts before its predecessor ends, or none where that cannot be.

    The kernel must call ``gdc_wait`` before it reads what a predecessor may have written and before it writes anything,
    and ``gdc_launch_dependents`` only after that. Then no more than two kernels overlap, and what is written is ordered
    as without overlap.
    """
    if not wanted or tensor.device.type != "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return {}
    return {"launch_pdl": True} if _device_overlaps(tensor.device) else {}


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many programs the device runs side by side at least; a CPU is counted as a large device."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count
