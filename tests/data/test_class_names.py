"""The rule by which classes are found."""

import unicodedata

import numpy as np
import pytest

from aimamba.data.class_names import find_class, match_classes, match_numbers
from aimamba.errors import ConfigError
from refusals import one_line_error

WORDS = ("planets", "Robots", "sea shells")
PADDED = ("001", "002", "003")
COUNTED = tuple(str(number) for number in range(1, 13))


def refusal(name, names, count=None):
    with one_line_error(ConfigError) as caught:
        find_class(name, names, len(names) if count is None else count)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "names", "label"),
    [
        ("Robots", WORDS, 1),
        ("robots ", WORDS, 1),
        ("2", WORDS, 2),
        ("#2", WORDS, 2),
        (2, WORDS, 2),
        (np.int64(2), WORDS, 2),
        ("002", PADDED, 1),
        ("#0", PADDED, 0),
        ("#1", PADDED, 1),
        (1, PADDED, 1),
        ("1", COUNTED, 0),
        ("12", COUNTED, 11),
        ("#12", ("#12", *WORDS), 0),
        ("a", ("A", "a"), 1),
        ("A", ("A", "a"), 0),
        (unicodedata.normalize("NFC", "café"), (unicodedata.normalize("NFD", "café"), "tea"), 0),
        (unicodedata.normalize("NFD", "CAFÉ"), (unicodedata.normalize("NFC", "café"), "tea"), 0),
        ("tea", ("tea ", "x"), 0),
        ("7", (), 7),
        ("#7", (), 7),
    ],
)
def test_a_class_is_found(name, names, label):
    assert find_class(name, names, len(names) or 10) == label


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("1", PADDED, "did you mean '001' (#0)?"),
        ("0", COUNTED, "unknown class '0': this model's classes are named by numbers, and none is named so"),
        ("13", COUNTED, "expected one of: 1, 2, 3"),
        ("#12", COUNTED, "unknown class '#12'"),
        ("4", ("4 ", " 4"), "could be '4 ' (#0) or ' 4' (#1); write the exact name"),
        ("b", ("B", "ab", "b "), "could be 'B' (#0) or 'b ' (#2)"),
        ("3", WORDS, "expected a number from 0 to 2 or one of: planets, Robots, sea shells"),
        ("#x", WORDS, "unknown class '#x'"),
        ("9" * 5000, WORDS, "unknown class '999"),
        ("9" * 5000, (), "have no names, expected 0 to 9"),
        (1.0, WORDS, "expected a class as a name or a whole number from 0 to 2, got 1.0"),
        (True, WORDS, "got True"),
        (None, WORDS, "got None"),
        (-1, WORDS, "unknown class -1"),
        ("x", ("n" * 5000, "m" * 5000), "unknown class 'x'; expected"),
    ],
)
def test_a_class_is_not_found(name, names, said):
    assert said in refusal(name, names, len(names) or 10)


def test_candidates_for_a_number_are_named():
    assert "did you mean '001' (#0) or '01' (#1)?" in refusal("1", ("001", "01", "2"))


def test_sets_of_names():
    assert match_classes(("b", "A"), ("a", "B")) == [1, 0]
    assert match_classes(("a", "A"), ("A", "a")) == [1, 0]
    assert match_classes(("a", "b"), ("A", "a")) is None
    assert match_classes(("a",), ("a", "b")) is None
    assert match_classes(("1", "2"), ("001", "002")) is None


def test_labels_without_names():
    assert match_numbers(())
    assert match_numbers(WORDS)
    assert match_numbers(("0", "1", "2"))
    assert not match_numbers(COUNTED)
    assert not match_numbers(("0", "1", "10", "2"))
