"""Where and how precisely a model computes: devices and dtypes by name."""

import time
from functools import cache

import torch

from aimamba.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that is really there.

    Raises:
        ConfigError: There is no such device on this machine.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if has_mps else [])]
    if name in there or (name == "cuda" and torch.cuda.is_available()):
        return torch.device(name)
    raise ConfigError(f"device {name!r} is not available; this machine has: {', '.join(['auto', *there])}")


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_dtype(name: str) -> torch.dtype:
    """Turn the name of a floating dtype into the dtype.

    Raises:
        ConfigError: The name is none of float32, bfloat16, float16, float64.
    """
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is unknown; expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


_CLEARLY = 1.3  # times as fast: autocast spends some of it on casts
_ROUNDS = 5


@cache
def bfloat16_pays(device: torch.device) -> bool:
    """Whether the device multiplies matrices clearly faster in bfloat16 than in float32.

    A GPU of Nvidia's says so itself. Elsewhere a few products are timed, a tenth of a second: many a processor takes
    bfloat16 and computes it ten times as slowly.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    taken: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(_ROUNDS):  # in turn, so that a busy moment meets both
        for dtype, seconds in taken.items():
            left, right = (torch.ones(size, 512, dtype=dtype, device=device) for size in (256, 512))
            started = time.perf_counter()
            (left @ right.t()).max().item()  # waits for the device
            seconds.append(time.perf_counter() - started)
    return min(taken[torch.float32]) > _CLEARLY * min(taken[torch.bfloat16])
