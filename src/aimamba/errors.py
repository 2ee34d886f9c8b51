"""What goes wrong through the user's input, told in one line: what, got, expected, how to fix.

The command line prints the message and exits with status 2; everything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

_LIKE = 0.55  # from 0, nothing alike, to 1; below it a neighbour is a chance
_AS_LIKE = 0.15  # further from the word than the nearest by this much is not worth naming


class AimambaError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(AimambaError):
    """A setting, option, preset or recipe is unknown or out of range."""


class DataError(AimambaError):
    """An image, a folder of images or a class label cannot be used."""


class CheckpointError(AimambaError):
    """Weights are missing, truncated or belong to another model."""


def suggest(word: str, known: Iterable[str], *, most: int = 3) -> str:
    """Name the known words nearest to ``word``: ``" (did you mean 'planets'?)"``, or nothing.

    Args:
        word: What the user wrote.
        known: What would have been accepted.
        most: How many neighbours to name.
    """
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=most, cutoff=_LIKE)
    if not near:
        return ""
    best, *others = (difflib.SequenceMatcher(None, name, word.lower()).ratio() for name in near)
    near = near[: 1 + sum(likeness > best - _AS_LIKE for likeness in others)]
    return f" (did you mean {' or '.join(repr(by_lower[name]) for name in near)}?)"
