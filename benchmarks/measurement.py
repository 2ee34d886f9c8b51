"""What is to be measured, and how a number is summed up."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SECTIONS = ("ceilings", "sampling", "training", "growth", "startup", "decoder")


class SkippedError(Exception):
    """One measurement cannot be taken, for the reason told in one line; others of the same subject may."""


class UnavailableError(Exception):
    """An engine or a peer is not at hand, so none of its measurements can be taken; the reason in one line."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure to take, all that a worker needs to know.

    Attributes:
        section: One of ``SECTIONS``.
        subject: Whose speed: ``aim``, ``attention``, a peer's name, or what else the section measures.
        variant: Engine of ours, or another way to run the same subject.
        dtype: Of the matrices: ``float32``, ``bfloat16`` or ``int8``.
        batch: Images at once.
        tokens: Codes of an image.
        size: Name of the preset whose shape is measured.
        device: Where.
        limit_seconds: How long measuring may take, without building and warming up.
        quick: Tiny models, to see that everything runs.
        paths: Folders of peers by name.
    """

    section: str
    subject: str
    variant: str = ""
    dtype: str = "float32"
    batch: int = 1
    tokens: int = 256
    size: str = "aim-b"
    device: str = "cpu"
    limit_seconds: float = 60.0
    quick: bool = False
    paths: tuple[tuple[str, str], ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this measurement from others in a file of results."""
        skipped = ("limit_seconds", "paths", "device", "quick")
        return {name: value for name, value in asdict(self).items() if name not in skipped}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest of several runs, and how many there were."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }
