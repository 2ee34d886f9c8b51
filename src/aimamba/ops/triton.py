"""Whether Triton kernels can be used here. The kernels are in the ``triton`` folder of each operation."""

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
