"""The description of one measurement, and summary statistics."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SECTIONS = (
    "ceilings",
    "sampling",
    "images",
    "training",
    "growth",
    "startup",
    "decoder",
    "kernels",
    "scan",
    "convolution",
    "profile",
)

LAYOUTS = "layouts"
"""Variant of a kernel's measurement that times every launch layout."""


class SkippedError(Exception):
    """One measurement cannot be taken; the message is the reason, in one line."""


class UnavailableError(Exception):
    """An engine or a peer cannot be used, so none of its measurements can be taken; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything a worker needs to know to take one measurement.

    Attributes:
        section: One of ``SECTIONS``.
        subject: What is measured: ``aim``, ``attention``, a peer, a kernel, or another subject of the section.
        variant: Engine of AiM, or another way to run the same subject.
        dtype: Dtype of the matrices: ``float32``, ``bfloat16`` or ``int8``.
        batch: Number of images in a batch.
        tokens: Number of tokens per image.
        size: Name of the preset that sets the shapes.
        device: Torch device.
        limit_seconds: Time limit for measuring, without building and warming up.
        box_seconds: Time after which the process that measures is stopped; None is several times the limit.
        quick: Use tiny models, to check that everything runs.
        paths: Folders of peers, as pairs of name and path.
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
    box_seconds: float | None = None
    quick: bool = False
    paths: tuple[tuple[str, str], ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that identify this measurement in a results file."""
        skipped = ("limit_seconds", "box_seconds", "paths", "device", "quick")
        return {name: value for name, value in asdict(self).items() if name not in skipped}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum, maximum and number of several runs."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


def first_line(error: Exception) -> str:
    """Return an exception's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
