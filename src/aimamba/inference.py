"""What a caller has set for itself does not change what models compute for it."""

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar, no_type_check

import torch

from aimamba.devices import without_autocast

Function = TypeVar("Function", bound=Callable[..., Any])

_DEVICE_TYPES = "cpu", "cuda", "mps"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave a caller's autocast and default device, as context or as decorator of functions (not of generators).

    Kernels and recorded steps take weights and memories in the dtypes that they have. Tensors for which no device is
    given are on the host.
    """
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in _DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(without_autocast(torch.device(kind)))
        yield


class Inference(torch.inference_mode):
    """PyTorch's inference mode, undisturbed, as context or as decorator, also of generators.

    PyTorch does not see a generator behind another decorator, such as a type checker's, and would leave the mode before
    its first step.
    """

    def __call__(self, function: Function) -> Function:
        """Return a function that runs in this mode."""
        if not inspect.isgeneratorfunction(inspect.unwrap(function)):
            return super().__call__(function)

        @wraps(function)
        @no_type_check  # otherwise a type checker would stand between again
        def steps(*given: Any, **named: Any) -> Generator[Any, Any, Any]:
            return (yield from function(*given, **named))

        return super().__call__(steps)

    def __enter__(self) -> None:
        super().__enter__()
        self._outer = undisturbed()
        self._outer.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outer.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)
