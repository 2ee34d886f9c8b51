"""Numbers with their nouns."""

import pytest

from aimamba.errors import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2000, "image", "2,000 images"),
        (1, "class", "1 class"),
        (10, "class", "10 classes"),
    ],
)
def test_one_is_singular(number, noun, text):
    assert counted(number, noun) == text
