"""Kernels for CUDA devices. Importing a module here imports Triton, so nothing does until a model works on one."""

_OLDEST = (3, 5)  # 3.4 fails to compile a cumulative sum that is shorter than a program has threads


def unsupported() -> str | None:
    """What keeps the kernels from being used, if anything does."""
    try:
        import triton  # noqa: PLC0415 - only where it is used
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST:
        return f"Triton {triton.__version__} is too old, expected 3.5 or newer (torch 2.9 brings it)"
    return None
