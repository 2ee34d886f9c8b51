"""Count the operations with which a program waits for the device, on any device."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_AS_LONG_AS_THE_NUMBERS_SAY = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
# Some versions of torch show "item" and "is_nonzero" themselves in inference mode, others what they call.
_COPYING = ("tensor", "as_tensor", "new_tensor")
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


class _Calls(TorchFunctionMode):
    """Records what is no operator: ``tolist`` and ``numpy`` read memory, and numbers of the host are copied there."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        reads = name in ("tolist", "numpy") and isinstance(args[0], torch.Tensor)
        on_device = name == "new_tensor" or (kwargs or {}).get("device") is not None
        if reads or (name in _COPYING and on_device and not isinstance(args[-1], torch.Tensor)):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_waits(device: str = "cpu") -> Iterator[list[str]]:
    """Yield a list of the waits inside the block, one entry for each.

    On a CUDA device it is what torch reports. On the CPU it is what would wait if the tensors were on a device, as far
    as operators and calls tell: a tensor that is moved to the host or from there cannot be seen.
    """
    found: list[str] = []
    if device == "cpu":
        with _Operators(found), _Calls(found):
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
