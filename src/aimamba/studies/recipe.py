"""The recipe of a study, one TOML file: settings that all its generators share, and the variants."""

import os
import re
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from aimamba.config import check, from_mapping
from aimamba.errors import ConfigError, suggest
from aimamba.generation import SamplingConfig
from aimamba.studies.scans import SCAN_ORDERS
from aimamba.train.recipe import DataConfig, Recipe
from aimamba.train.settings import FitConfig
from aimamba.train.toml import read_toml

Kind = Literal["ablation", "baseline", "guidance", "scaling"]
Schedule = Literal["constant", "linear", "power-cosine"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A generator of a study.

    Attributes:
        name: Letters, digits, dots and dashes; the folders of the runs begin with it.
        title: Name in the table; ``name`` by default.
        family: Kind of model, in a study that compares two kinds.
        size: Models of the same size but of different families are compared with each other.
        model: Settings of the model; they override those of the study.
        lr: Peak learning rate; that of the study by default.
        order: Scan order of the tokens, see ``aimamba.studies.scans``.
        seeds: Seeds, one run for each; those of the study by default.
    """

    name: str
    title: str = ""
    family: str = ""
    size: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    order: str = "raster"
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.name) is not None,
            f"variants: a name has letters, digits, dots and dashes, got {self.name!r}",
        )
        check(
            self.order in SCAN_ORDERS,
            f"variants: order of {self.name} must be one of {', '.join(SCAN_ORDERS)}, got {self.order!r}",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is sampled, and what its samples are compared with.

    Attributes:
        reference: Real images, named as for ``aimamba evaluate``.
        samples: Samples of each model; in the study ``guidance`` the budget is used instead.
        batch_size: Images that a model generates at once.
        scales: Guidance scales; 1 is no guidance.
        schedules: Guidance schedules.
        cfg_power: Power of the schedule ``power-cosine``.
    """

    reference: str = "avatars-64:held-out"
    samples: int = 1000
    batch_size: int = 50
    scales: tuple[float, ...] = (1.0,)
    schedules: tuple[Schedule, ...] = ("constant",)
    cfg_power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            check(getattr(self, name) >= 1, f"judging.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("scales", "schedules"):
            check(len(getattr(self, name)) > 0, f"judging.{name} must hold at least one value")
        self.samplings()

    def samplings(self) -> list[SamplingConfig]:
        """Return every scale with every schedule; scale 1 only once, since the schedule has no effect there."""
        guided = [
            SamplingConfig(cfg_scale=scale, cfg_schedule=schedule, cfg_power=self.cfg_power)
            for schedule in self.schedules
            for scale in self.scales
            if scale != 1
        ]
        return [SamplingConfig()] * (1 in self.scales) + guided


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The learning-rate sweep, run with the smallest model of each family.

    Attributes:
        lrs: Learning rates to try.
        share: Share of the budget for each of them.
    """

    lrs: tuple[float, ...]
    share: float = 0.25

    def __post_init__(self) -> None:
        check(len(self.lrs) > 0, "sweep.lrs must hold at least one learning rate")
        check(0 < self.share <= 1, f"sweep.share must lie in (0, 1], got {self.share}")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Lengths and batches at which speed and memory of sampling are measured.

    Attributes:
        tokens: Lengths of the sequence.
        batches: Numbers of images that are generated at once.
    """

    tokens: tuple[int, ...] = (64, 256, 1024)
    batches: tuple[int, ...] = (1, 16)

    def __post_init__(self) -> None:
        for name in ("tokens", "batches"):
            values = getattr(self, name)
            check(min(values, default=0) >= 1, f"speed.{name} must be numbers of at least 1, got {list(values)}")


@dataclass(frozen=True, kw_only=True)
class StudyRecipe:
    """A study.

    Attributes:
        kind: Kind of study, which determines the table and the figure.
        description: One line for the reader.
        budget: Images that every run trains on; in ``guidance``, images generated with every setting.
        seeds: Seeds, one run of each variant for each seed.
        warmup: Share of the steps in which the learning rate rises.
        data: The images.
        model: Settings of all generators.
        fit: Settings of the training loop except ``steps``, ``warmup_steps`` and ``seed``.
        task: Settings of the loss and the sample sheets except ``tokenizer``.
        variants: The generators.
        judging: How the generators are sampled and evaluated.
        sweep: The learning-rate sweep of ``baseline``.
        speed: Where ``baseline`` measures speed.
    """

    kind: Kind
    description: str = ""
    budget: int
    seeds: tuple[int, ...] = (0,)
    warmup: float = 0.05
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    judging: EvaluationConfig = field(default_factory=EvaluationConfig)
    sweep: SweepConfig | None = None
    speed: SpeedConfig = field(default_factory=SpeedConfig)

    def __post_init__(self) -> None:
        check(self.budget >= 1, f"budget must be at least 1 image, got {self.budget}")
        check(len(self.seeds) > 0, "seeds must hold at least one number")
        check(0 <= self.warmup <= 1, f"warmup must lie in [0, 1], got {self.warmup}")
        names = [variant.name for variant in self.variants]
        twice = [name for name in names if names.count(name) > 1]
        check(not twice, f"variants: {', '.join(twice[:1])} is there twice; give each variant another name")
        check(self.kind == "guidance" or bool(names), f"a study of kind {self.kind!r} needs variants")
        if self.kind == "baseline":
            check(self.sweep is not None, "a study of kind 'baseline' needs the section sweep")
            families = list(dict.fromkeys(variant.family for variant in self.variants))
            sizes = [{v.size: v.seeds for v in self.variants if v.family == family} for family in families]
            check(
                len(families) == 2 and sizes[0] == sizes[1],
                "a study of kind 'baseline' needs two families of variants with the same sizes and seeds, got "
                f"{', '.join(f'{v.family} {v.size}' for v in self.variants)}",
            )


def study_names() -> list[str]:
    """Return the names of the packaged studies."""
    files = (Path(entry.name) for entry in resources.files("aimamba").joinpath("recipes", "studies").iterdir())
    return sorted(file.stem for file in files if file.suffix == ".toml")


def load_study(name_or_path: str) -> StudyRecipe:
    """Load the recipe of a study.

    Args:
        name_or_path: Name of a packaged study, or path of a TOML file (it has a slash or ``.toml`` in it).

    Raises:
        ConfigError: There is no such study, the file is not TOML, or a setting is unknown or out of range.
    """
    if name_or_path.endswith(".toml") or os.sep in name_or_path or "/" in name_or_path:
        values = read_toml(Path(name_or_path).expanduser())
    elif name_or_path in (names := study_names()):
        packaged = resources.files("aimamba").joinpath("recipes", "studies", f"{name_or_path}.toml")
        values = tomllib.loads(packaged.read_text(encoding="utf-8"))
    else:
        raise ConfigError(
            f"unknown study {name_or_path!r}{suggest(name_or_path, names)}; known studies: {', '.join(names)}; "
            "or give the path of a .toml file"
        )
    return from_mapping(StudyRecipe, values, where=name_or_path)


def training_recipe(
    study: StudyRecipe, variant: Variant, *, tokenizer: str, budget: int, seed: int, lr: float | None = None
) -> Recipe:
    """Return the training recipe of a variant, as ``aimamba train`` takes it.

    Args:
        study: The study.
        variant: One of its variants.
        tokenizer: Name of the tokenizer whose codes are learned.
        budget: Images to train on, rounded down to whole batches; at least one batch.
        seed: Seed of weights, order of the images and dropout.
        lr: Peak learning rate, instead of the variant's.

    Raises:
        ConfigError: A setting of ``fit`` is unknown or out of range.
    """
    settings = dict(study.fit)
    chosen = variant.lr if lr is None else lr
    if chosen is not None:
        settings["lr"] = chosen
    steps = max(1, budget // max(1, settings.get("batch_size", 1)))
    settings |= {"steps": steps, "warmup_steps": round(study.warmup * steps), "seed": seed}
    return Recipe(
        stage="generator",
        description=f"{variant.name} of the study {study.kind}",
        data=study.data,
        model={**study.model, **variant.model},
        fit=from_mapping(FitConfig, settings, where=f"{study.kind}: fit"),
        task={**study.task, "tokenizer": tokenizer},
    )
