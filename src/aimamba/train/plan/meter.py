"""How much memory a computation on the meta device would hold at each moment.

Tensors on the meta device have shapes and no numbers. Operations on them take no time worth mentioning, and autograd
keeps and frees the same tensors as elsewhere, so the peak of a training step can be known before there is a device.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATIONS, CASTS, GRADIENTS = "activations", "casts", "gradients"
"""Kinds of memory: what operations return, weights in a narrower dtype, gradients of parameters."""


class Meter(TorchDispatchMode):
    """Counts the storages that operations create while the mode is on, until they are freed.

    Only what operations return is counted, not what they need while they run.

    Attributes:
        live: Bytes in use now, by kind.
        peak: Most bytes in use at once.
        peaks: Most bytes of each kind in use at once; not all at the same moment.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[str, int] = dict.fromkeys((ACTIVATIONS, CASTS, GRADIENTS), 0)
        self.peak = 0
        self.peaks = dict(self.live)
        self._kind = ACTIVATIONS
        self._known: dict[int, tuple[str, int, Any]] = {}  # by the address of the storage: kind, bytes, weak reference

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        returned = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return returned

    @contextmanager
    def counting_as(self, kind: str) -> Iterator[None]:
        """Count what is created meanwhile as ``kind``."""
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._kind = before

    def is_gradient(self, parameter: Tensor) -> None:
        """Count the gradient of a parameter, which has just been added to ``parameter.grad``, as one."""
        if parameter.grad is None:
            return
        key = parameter.grad.untyped_storage()._cdata
        if key in self._known:
            kind, size, reference = self._known[key]
            self._known[key] = GRADIENTS, size, reference
            self.live[kind] -= size
            self._add(GRADIENTS, size)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        freed: Callable[[Any], None] = partial(self._freed, key)
        self._known[key] = self._kind, storage.nbytes(), weakref.ref(storage, freed)
        self._add(self._kind, storage.nbytes())

    def _add(self, kind: str, size: int) -> None:
        self.live[kind] += size
        self.peak = max(self.peak, sum(self.live.values()))
        self.peaks[kind] = max(self.peaks[kind], self.live[kind])

    def _freed(self, key: int, _: Any) -> None:
        kind, size, _reference = self._known.pop(key)
        self.live[kind] -= size
