"""PyTorch's own threads, for kernels to compute with."""

import ctypes
from functools import cache


@cache
def parallel_regions() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP library that PyTorch has loaded, or None where that has no such.

    PyTorch's threads wait busily between operations; a kernel with threads of its own would compete with them.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None
