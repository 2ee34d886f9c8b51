"""What tables and figures are made of: runs gathered over seeds, metrics by name, correlation."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAPER_R = -0.9838
"""Correlation of parameters and FID that the paper gives for its four models, without a definition."""

Run = Mapping[str, Any]

METRICS: dict[str, tuple[str, str, float, int]] = {
    # key: name, which values are better, factor of the shown value, its digits
    "frechet": ("Fréchet", "lower", 1.0, 1),
    "fid": ("FID", "lower", 1.0, 2),
    "kid": ("kernel, thousandths", "lower", 1000.0, 2),
    "precision": ("precision", "higher", 1.0, 3),
    "recall": ("recall", "higher", 1.0, 3),
    "recognition": ("recognised", "higher", 100.0, 1),
}


@dataclass(frozen=True)
class Row:
    """A variant with its finished runs, one for each seed.

    Attributes:
        variant: Its settings, from the recipe.
        runs: The numbers of its runs.
    """

    variant: Mapping[str, Any]
    runs: Sequence[Run]

    @property
    def title(self) -> str:
        """How the table calls it."""
        return str(self.variant.get("title") or self.variant["name"])

    @property
    def parameters(self) -> int:
        """Of the model."""
        return int(self.runs[0]["parameters"])

    def bits(self) -> list[float]:
        """Held-out bits a token of each run."""
        return numbers(run["held_out"]["bits_per_token"] for run in self.runs)

    def guidances(self) -> list[str]:
        """The settings of guidance with which the runs drew."""
        return [guidance(sample) for sample in self.runs[0]["samples"]]

    @property
    def network(self) -> str:
        """Whose features were compared."""
        return network(self.runs[0]["samples"])

    def metric(self, key: str, index: int) -> list[float]:
        """A metric of each run with its setting of guidance number ``index``."""
        return numbers(metric(run["samples"][index], key) for run in self.runs)


def rows(content: Mapping[str, Any], runs: Mapping[str, Run]) -> list[Row]:
    """The variants that have finished runs, in the order of the recipe.

    Args:
        content: The settings of the study.
        runs: Its runs by name.
    """
    judged = [run for run in runs.values() if "samples" in run]
    found = [
        Row(variant, [run for run in judged if run.get("variant") == variant["name"]])
        for variant in content["recipe"]["variants"]
    ]
    return [row for row in found if row.runs]


def metric(sample: Mapping[str, Any], key: str) -> float | None:
    """A metric of one draw; of recognition its share."""
    value = sample["numbers"].get(key)
    found = value.get("share") if isinstance(value, Mapping) else value
    return None if found is None else float(found)


def known_metrics(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics that any of the draws has, in the order of ``METRICS``."""
    drawn = list(samples)
    return [key for key in METRICS if any(metric(sample, key) is not None for sample in drawn)]


def network(samples: Sequence[Mapping[str, Any]]) -> str:
    """Whose features were compared."""
    return str(samples[0]["numbers"].get("network", "unknown"))


def guidance(sample: Mapping[str, Any]) -> str:
    """Setting of guidance of one draw, in words."""
    scale, schedule = sample["sampling"]["cfg_scale"], sample["sampling"]["cfg_schedule"]
    if scale == 1:
        return "none"
    return f"{scale:g}" if schedule == "constant" else f"{scale:g} {schedule}"


def numbers(values: Iterable[float | None]) -> list[float]:
    """Those that are there."""
    return [float(value) for value in values if value is not None]


def mean(values: Sequence[float]) -> float:
    """Mean, or NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation coefficient; NaN for fewer than three pairs, or where one side does not vary."""
    if len(x) < 3 or len(x) != len(y):
        return math.nan
    dx, dy = ([value - mean(values) for value in values] for values in (x, y))
    scale = math.sqrt(sum(value**2 for value in dx) * sum(value**2 for value in dy))
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / scale if scale else math.nan
