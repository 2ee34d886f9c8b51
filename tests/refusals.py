"""Errors as users must see them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def one_line_error(error: type[Exception], match: str | None = None) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error of one line, as ``pytest.raises``."""
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)
