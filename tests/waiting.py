"""Count the operations after which a program waits for the device, on any device."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_AS_LONG_AS_THE_NUMBERS_SAY = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
# Some versions of torch show "item" and "is_nonzero" themselves in inference mode, others what they call.
_READING = ("_local_scalar_dense", "item", "is_nonzero", "equal", *_AS_LONG_AS_THE_NUMBERS_SAY)


class _Operators(TorchDispatchMode):
    """Records operators that a device cannot queue: those whose result or its shape is read by the host."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name in _READING:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class _Lists(TorchFunctionMode):
    """Records ``tolist`` and ``numpy``, which read memory without an operator."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("tolist", "numpy") and isinstance(args[0], torch.Tensor):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_waits(device: str = "cpu") -> Iterator[list[str]]:
    """Yield a list of the waits inside the block, one entry for each.

    On a CUDA device it is what torch reports. On the CPU it is what would wait if the tensors were on a device, as far
    as operators tell: a copy to the host cannot be seen there.
    """
    found: list[str] = []
    if device == "cpu":
        with _Operators(found), _Lists(found):
            yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found += [str(each.message) for each in caught if "synchronizing CUDA" in str(each.message)]
