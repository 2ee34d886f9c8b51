"""Sections of a study's recipe: how models are sampled and evaluated, learning rates, speed, tokenizers."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aimamba.config import check, to_mapping
from aimamba.errors import counted
from aimamba.evaluation.manifold import NEIGHBOURS
from aimamba.generation import SamplingConfig

Schedule = Literal["constant", "linear", "power-cosine"]

FEWEST_SAMPLES = NEIGHBOURS + 1
"""Precision and recall need so many."""
_MOST_MEASURED = 1 << 16  # tokens, and images of a batch, whose speed is measured
_MOST_SHARE = 1000  # times the budget
_MOST_IMAGES = 10**12


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How models are sampled and evaluated.

    Attributes:
        reference: Real images, in the notation of ``aimamba evaluate --reference``; for ``text``, in that of
            ``aimamba evaluate-text``.
        samples: Samples of each model, for ``text`` of each set; ``guidance`` generates its budget instead.
        batch_size: Images per batch.
        scales: Guidance scales; 1 is no guidance.
        schedules: Guidance schedules.
        cfg_power: Power of the schedule ``power-cosine``.
        intervals: Intervals of guidance besides: the scale, and ``cfg_start`` and ``cfg_end`` of ``SamplingConfig``.
    """

    reference: str = "avatars-64:held-out"
    samples: int = 1000
    batch_size: int = 50
    scales: tuple[float, ...] = (1.0,)
    schedules: tuple[Schedule, ...] = ("constant",)
    cfg_power: float = 1.0
    intervals: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("samples", FEWEST_SAMPLES), ("batch_size", 1)):
            check(getattr(self, name) >= least, f"judging.{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("scales", "schedules"):
            check(len(getattr(self, name)) > 0, f"judging.{name} must hold at least one value")
        for interval in self.intervals:
            check(
                len(interval) == 3,
                f"judging.intervals holds lists of scale, start and end, as in [2.0, 0.0, 0.5]; got {list(interval)}",
            )
        settings = self.samplings()
        labels = [guidance_label({"sampling": to_mapping(sampling)}) for sampling in settings]
        scales = [f"{scale:g}" for scale in self.scales]
        for printed in (scales, self.schedules, map(guidance_name, settings), labels):
            twice = _twice(printed)
            check(
                twice is None,
                "judging.scales, schedules and intervals must make settings that differ as they are printed, but "
                f"{twice!r} appears twice; leave one out",
            )

    def samplings(self) -> list[SamplingConfig]:
        """Return every scale with every schedule, but scale 1 only once, as none has an effect there, and intervals."""
        guided = [
            SamplingConfig(cfg_scale=scale, cfg_schedule=schedule, cfg_power=self.cfg_power)
            for schedule in self.schedules
            for scale in self.scales
            if scale != 1
        ]
        within = [SamplingConfig(cfg_scale=scale, cfg_start=a, cfg_end=b) for scale, a, b in self.intervals]
        return [SamplingConfig()] * (1 in self.scales) + guided + within


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Search for the learning rate of each kind of model, at its smallest size.

    Attributes:
        lrs: Learning rates to try.
        share: Fraction of the budget for each of them.
    """

    lrs: tuple[float, ...]
    share: float = 0.25

    def __post_init__(self) -> None:
        check(len(self.lrs) > 0, "sweep.lrs must hold at least one learning rate")
        wrong = [lr for lr in self.lrs if not 0 < lr < math.inf]
        check(not wrong, f"sweep.lrs must be positive numbers, got {wrong[:1]}")
        twice = _twice(f"{lr:g}" for lr in self.lrs)
        check(twice is None, f"sweep.lrs must differ as they are printed, but {twice} appears twice; leave one out")
        check(0 < self.share <= 1, f"sweep.share must lie in (0, 1], got {self.share}")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Sizes at which the speed and memory of generation are measured.

    Attributes:
        tokens: Sequence lengths.
        batches: Batch sizes; ``guidance-free`` measures the largest, with the tokens of its model.
    """

    tokens: tuple[int, ...] = (64, 256, 1024)
    batches: tuple[int, ...] = (1, 16)

    def __post_init__(self) -> None:
        for name in ("tokens", "batches"):
            values = getattr(self, name)
            check(min(values, default=0) >= 1, f"speed.{name} must be numbers of at least 1, got {list(values)}")
            check(
                max(values) <= _MOST_MEASURED,
                f"speed.{name} must be numbers of at most {_MOST_MEASURED:,}, got {list(values)}",
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What the tokenizers of the study ``tokenizer`` share.

    Attributes:
        share: Images that each trains on, as a multiple of the budget.
        reference: Held-out images to reconstruct, in the notation of ``aimamba evaluate --reference``.
        model: Settings of the model.
        task: Settings of the loss.
        fit: Settings of the training loop, without ``steps``, ``warmup_steps`` and ``seed``.
    """

    share: float = 1.0
    reference: str = "avatars-64:held-out:100"
    model: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            0 < self.share <= _MOST_SHARE,
            f"tokenizer.share must be a positive number of at most {_MOST_SHARE:,}, got {self.share}",
        )


def check_budget(images: int, name: str, *, compared: bool) -> None:
    """Raise a ConfigError unless a study can have a budget of so many images.

    Args:
        images: The budget.
        name: Of the setting.
        compared: Whether the images are samples that are compared, and not images to train on.
    """
    least = FEWEST_SAMPLES if compared else 1
    check(images >= least, f"{name} must be at least {counted(least, 'image')}, got {images}")
    check(images <= _MOST_IMAGES, f"{name} must be at most {_MOST_IMAGES:,} images; give fewer")


def guidance_name(sampling: SamplingConfig) -> str:
    """Return the name of the run that samples with a guidance setting."""
    name = f"{sampling.cfg_schedule}-{sampling.cfg_scale:g}"
    if (sampling.cfg_start, sampling.cfg_end) != (0, 1):
        name += f"-from-{sampling.cfg_start:g}-to-{sampling.cfg_end:g}"
    return name


def guidance_label(sample: Mapping[str, Any]) -> str:
    """Return the guidance setting of samples as text: ``none``, or the scale, with its schedule or interval if any."""
    sampling = sample["sampling"]
    if sampling["cfg_scale"] == 1:
        return "none"
    parts = [f"{sampling['cfg_scale']:g}"]
    parts += [sampling["cfg_schedule"]] if sampling["cfg_schedule"] != "constant" else []
    start, end = sampling.get("cfg_start", 0), sampling.get("cfg_end", 1)
    parts += [f"from {start:.0%} to {end:.0%}"] if (start, end) != (0, 1) else []
    return " ".join(parts)


def _twice(names: Iterable[str]) -> str | None:
    """Return the first name that appears twice, if any."""
    return next((name for name, times in Counter(names).items() if times > 1), None)
