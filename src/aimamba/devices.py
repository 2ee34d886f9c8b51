"""Devices and dtypes by name, copies to a device, and whether it is fast in bfloat16."""

import time
from functools import cache

import torch
from torch import Tensor

from aimamba.errors import ConfigError

_QUEUES = ("cuda",)  # types of devices that copy from pinned memory in their own time


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` names.

    ``auto`` takes CUDA if there is any, then MPS, then the CPU.

    Raises:
        ConfigError: There is no such device on this machine.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if has_mps else [])]
    if name in available or (name == "cuda" and torch.cuda.is_available()):
        return torch.device(name)
    raise ConfigError(f"device {name!r} is not available; this machine has: {', '.join(['auto', *available])}")


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return the floating-point dtype of this name, or the dtype itself.

    Raises:
        ConfigError: It is not one of float32, bfloat16, float16 and float64.
    """
    known = str(name).removeprefix("torch.")
    if known not in _DTYPES:
        raise ConfigError(f"dtype {known!r} is unknown; expected one of {', '.join(_DTYPES)}")
    return _DTYPES[known]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without a wait for what the device has queued.

    A copy from memory that is not pinned waits for it. The copy is queued behind what the caller's stream has queued.
    """
    if device.type in _QUEUES and tensor.device.type == "cpu":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


_WORTHWHILE = 1.3  # ratio of speeds; autocast spends a part of the gain on casts
_ROUNDS = 5


@cache
def bfloat16_pays(device: torch.device) -> bool:
    """Whether the device multiplies matrices much faster in bfloat16 than in float32.

    PyTorch knows this of CUDA devices. On others a few products are timed, which takes a tenth of a second: many
    processors accept bfloat16 but compute it ten times as slowly.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    taken: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(_ROUNDS):  # alternately, so that a busy moment slows both
        for dtype, seconds in taken.items():
            left, right = (torch.ones(size, 512, dtype=dtype, device=device) for size in (256, 512))
            started = time.perf_counter()
            (left @ right.t()).max().item()  # waits for the device
            seconds.append(time.perf_counter() - started)
    return min(taken[torch.float32]) > _WORTHWHILE * min(taken[torch.bfloat16])


def without_autocast(device: torch.device) -> torch.autocast:
    """Return a context in which autocast does not narrow the operations of a device.

    There is none for the meta device. A plan of memory (``train.plan.on_paper``) stands in for it there and goes by the
    flag of the CPU.
    """
    return torch.autocast(device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False)
