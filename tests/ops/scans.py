"""Inputs of the forms of a recurrence, at any size, and what all of them have in common."""

import inspect
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor


def sizes(longest: int) -> st.SearchStrategy[dict[str, int | bool]]:
    """Draw the keyword arguments of a test's ``make_inputs``."""
    return st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**20),
            "length": st.integers(0, longest),
            "batch": st.integers(1, 2),
            "heads": st.integers(1, 3),
            "width": st.integers(1, 4),
            "states": st.integers(1, 5),
            "with_state": st.booleans(),
        }
    )


def normals(generator: torch.Generator) -> Callable[..., Tensor]:
    """Return a function that draws a float64 tensor of a shape from N(0, 1)."""
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def parameters(form: Callable) -> list[str]:
    """Return the signature of a form."""
    return [str(parameter) for parameter in inspect.signature(form).parameters.values()]
