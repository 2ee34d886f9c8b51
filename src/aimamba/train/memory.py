"""How the process keeps its memory between the passes of a training."""

import ctypes
import sys

# Of glibc's malloc.h; the values are the largest it takes in an int.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _LARGE = 2**31 - 1, 2**30


def keep_freed_memory() -> None:
    """Have malloc hand freed memory out again instead of giving it back to the system; once done it stays so.

    glibc maps every large tensor anew and returns it when it is freed, so each step of a training on CPU would touch
    all its memory for the first time: a hundred thousand page faults, up to a quarter of the time. The most memory
    that is held does not change, but it stays held. Nothing happens where malloc has no such settings.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
