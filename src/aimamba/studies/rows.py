"""Data of tables and figures: runs grouped by variant over seeds, metrics by name, correlation."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aimamba.studies.results import Results
from aimamba.studies.settings import guidance_label

PAPER_R = -0.9838
"""Correlation of parameters and FID that the paper reports for its four models, without a definition."""

Run = Mapping[str, Any]


class Metric(NamedTuple):
    """How a metric is shown.

    Attributes:
        name: Name in tables.
        better: Which values are better, ``lower`` or ``higher``.
        factor: Factor of the shown value.
        digits: Decimal places of the shown value.
    """

    name: str
    better: str
    factor: float
    digits: int


METRICS = {
    "frechet": Metric("Fréchet", "lower", 1.0, 1),
    "fid": Metric("FID", "lower", 1.0, 2),
    "kid": Metric("kernel, thousandths", "lower", 1000.0, 2),
    "precision": Metric("precision", "higher", 1.0, 3),
    "recall": Metric("recall", "higher", 1.0, 3),
    "recognition": Metric("unanimous 5-NN accuracy", "higher", 100.0, 1),
}
"""The metrics in tables, by their key in the results."""


@dataclass(frozen=True)
class Row:
    """A variant with its finished runs, one for each seed.

    Attributes:
        variant: Settings of the variant, from the recipe.
        runs: Numbers of its runs.
    """

    variant: Mapping[str, Any]
    runs: Sequence[Run]

    @property
    def title(self) -> str:
        """Name in the table."""
        return str(self.variant.get("title") or self.variant["name"])

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return int(self.runs[0]["parameters"])

    def bits(self) -> list[float]:
        """Return the held-out bits per token of each run."""
        return without_missing(run["held_out"]["bits_per_token"] for run in self.runs)

    def guidances(self) -> list[str]:
        """Return the guidance settings of the samples."""
        return [guidance_label(sample) for sample in self.runs[0]["samples"]]

    @property
    def network(self) -> str:
        """Name of the network whose features were compared."""
        return network(self.runs[0]["samples"])

    def metric(self, key: str, index: int) -> list[float]:
        """Return a metric of each run at the guidance setting number ``index``."""
        return without_missing(metric(run["samples"][index], key) for run in self.runs)

    def of_tokenizer(self, key: str) -> list[float]:
        """Return a number about the tokenizer of each run of the study ``tokenizer``."""
        return without_missing(run["tokenizer"].get(key) for run in self.runs)

    def bits_of_image(self) -> list[float]:
        """Return the held-out bits of all codes of an image of each run."""
        return [bits * run["tokens"] for bits, run in zip(self.bits(), self.runs, strict=False)]

    def in_set(self, name: str, *keys: str) -> list[float]:
        """Return a number about a set of the study ``text`` of each run, such as ``bits_per_token`` and ``right``."""
        return without_missing(nested(run["sets"][name], keys) for run in self.runs)

    def of_samples(self, name: str, index: int, *keys: str) -> list[float]:
        """Return a number about samples for a set at the guidance setting number ``index`` of each run."""
        return without_missing(nested(run["samples"][index]["numbers"]["sets"][name], keys) for run in self.runs)


def nested(values: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return what is under the first of some keys, in it under the second, and so on."""
    for key in keys:
        values = values[key]
    return values


def set_names(found: Sequence[Row]) -> list[str]:
    """Return the sets of the study ``text``."""
    return list(found[0].runs[0]["sets"])


def variant_rows(settings: Mapping[str, Any], runs: Mapping[str, Run]) -> list[Row]:
    """Return the variants that have finished runs, in the order of the recipe.

    Args:
        settings: Settings of the study.
        runs: Numbers of its runs by name.
    """
    evaluated = [run for run in runs.values() if "samples" in run]
    found = [
        Row(variant, [run for run in evaluated if run.get("variant") == variant["name"]])
        for variant in settings["recipe"]["variants"]
    ]
    return [row for row in found if row.runs]


def metric(sample: Mapping[str, Any], key: str) -> float | None:
    """Return a metric of samples, or None if it was not measured; for ``recognition``, the unanimous 5-NN accuracy."""
    value = sample["numbers"].get(key)
    found = value.get("share") if isinstance(value, Mapping) else value
    return None if found is None else float(found)


def known_metrics(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys of metrics that any of the samples has, in the order of ``METRICS``."""
    found = list(samples)
    return [key for key in METRICS if any(metric(sample, key) is not None for sample in found)]


def network(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the network whose features were compared."""
    return str(samples[0]["numbers"].get("network", "unknown"))


def titled_samples(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """Return all samples of a study of one model with the title of theirs: first the model itself, then fine-tuned."""
    settings = results.settings
    titles = {each["name"]: each.get("title") or each["name"] for each in settings["recipe"]["variants"]}
    runs = sorted(results.runs.values(), key=lambda run: "variant" in run)
    return [(titles.get(run.get("variant"), settings["model"]), s) for run in runs for s in run.get("samples", [])]


def speeds(results: Results) -> dict[str, Mapping[str, Any]]:
    """Return rows and images per second by guidance setting; fine-tuning does not change them."""
    lines = results.runs.get("speed", {}).get("speed", [])
    return {guidance_label(line): line for line in lines}


def against_reconstructions(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the same samples, with the metrics against reconstructions in place of those against real images."""
    return {**sample, "numbers": sample["numbers"]["reconstructions"]}


def without_missing(values: Iterable[float | None]) -> list[float]:
    """Return the values that are not None."""
    return [float(value) for value in values if value is not None]


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN without values."""
    return sum(values) / len(values) if values else math.nan


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Pearson's correlation coefficient; NaN for fewer than three pairs or if one side does not vary."""
    if len(x) < 3 or len(x) != len(y):
        return math.nan
    dx, dy = ([value - mean(values) for value in values] for values in (x, y))
    scale = math.sqrt(sum(value**2 for value in dx) * sum(value**2 for value in dy))
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / scale if scale else math.nan
