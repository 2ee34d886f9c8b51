"""What a caller has set for itself does not change what models compute for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

_DEVICE_TYPES = "cpu", "cuda", "mps"


@contextmanager
def without_autocast() -> Iterator[None]:
    """Switch off automatic mixed precision, as context or as decorator of functions (not of generators).

    Kernels and recorded steps take weights and memories in the dtypes that they have.
    """
    enabled = [kind for kind in _DEVICE_TYPES if torch.is_autocast_enabled(kind)]
    for kind in enabled:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)


class Inference(torch.inference_mode):
    """PyTorch's inference mode without autocast, as context or as decorator, also of generators."""

    def __enter__(self) -> None:
        super().__enter__()
        self._outer = without_autocast()
        self._outer.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outer.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)
