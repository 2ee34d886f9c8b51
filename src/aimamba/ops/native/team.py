"""Running kernels in PyTorch's own threads."""

import ctypes
from functools import cache


@cache
def parallel_regions() -> int | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP library that PyTorch has loaded, or None without one.

    PyTorch's threads spin between operations, so a kernel with its own threads would compete with them.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None
