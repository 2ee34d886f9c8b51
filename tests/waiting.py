"""Count the operations with which a program waits for the device, on any device."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from aimamba import devices

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


class _OnMeta(TorchDispatchMode):
    """Records what waits for a device, in whose place there is ``meta``, and copies of pinned memory that do not."""

    def __init__(self, found: list[str], pinned: list[Tensor]) -> None:
        super().__init__()
        self.found, self.pinned, self.sent = found, pinned, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._schema.name.removeprefix("aten::"), kwargs or {}
        tensors = [each for each in torch.utils._pytree.tree_leaves(args) if isinstance(each, Tensor)]
        given = {each.device.type for each in tensors}
        if name in _READING and "meta" in given:
            self.found.append(name)
        result = function(*args, **kwargs)
        if name in ("_to_copy", "copy_", "to") and {result.device.type, *given} == {"cpu", "meta"}:
            sends = kwargs.get("non_blocking", False) and any(tensors[-1] is each for each in self.pinned)
            self.sent += sends
            if not sends:
                self.found.append(f"{name} of memory that is not pinned")
        return result


class _Made(TorchFunctionMode):
    """Records tensors that are made of numbers on ``meta``: on a device, that copies them and waits."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        device = (kwargs or {}).get("device")
        if function in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == "meta":
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextmanager
def pretended_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], Callable[[], int]]]:
    """Take ``meta`` for a device that queues what it is given.

    Yields:
        A list of the waits inside the block, as ``counted_waits`` yields; and a function that returns how many copies
        of pinned memory did not wait.
    """
    found, pinned = [], []

    def pin(tensor: Tensor) -> Tensor:
        assert tensor.is_contiguous(), "torch cannot pin what shares memory"
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(devices, "_QUEUES", ("meta",))
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    with _OnMeta(found, pinned) as mode, _Made(found):
        yield found, lambda: mode.sent
