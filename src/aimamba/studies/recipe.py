"""Recipes of studies: the settings that all generators of a study share, and how its variants differ."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aimamba.config import check, from_mapping
from aimamba.studies.scans import SCAN_ORDERS
from aimamba.studies.settings import EvaluationConfig, SpeedConfig, SweepConfig, TokenizerConfig, check_budget
from aimamba.train.recipe import DataConfig, Recipe
from aimamba.train.recipe_files import RecipeFiles
from aimamba.train.settings import FitConfig

Kind = Literal["ablation", "baseline", "guidance", "guidance-free", "scaling", "text", "tokenizer"]

_TEXT_ENCODER = "text_encoder"  # a setting of task
_LONGEST_NAME = 100  # characters, of which a file's name takes at most 255
_DECIDED = {  # settings that the budget, the seeds, the images and the tokenizer decide
    "fit": ("steps", "warmup_steps", "seed"),
    "task": ("tokenizer",),
    "model": ("vocab_size", "num_tokens", "num_classes", "tokenizer"),
}
_PACKAGED = RecipeFiles("study", "studies", folder="recipes/studies")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One generator of a study.

    Attributes:
        name: Letters, digits, dots and dashes; the folders of its runs begin with it.
        title: Title in the table; by default the name.
        family: Kind of model, in a study that compares kinds.
        size: Label of its size in such a study; models of the same size are compared with each other.
        model: Settings of the model; they override those of the study.
        task: Settings of the loss, likewise.
        lr: Highest learning rate; by default that of the study.
        order: Order of the codes in the sequence, see ``aimamba.studies.scans``.
        seeds: Seeds, one for each run; by default those of the study.
        tokenizer: Settings of the model of its tokenizer, in the study ``tokenizer``; they override those of the study.
        tokenizer_task: Settings of the loss of its tokenizer, likewise.
    """

    name: str
    title: str = ""
    family: str = ""
    size: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    order: str = "raster"
    seeds: tuple[int, ...] = ()
    tokenizer: dict[str, Any] = field(default_factory=dict)
    tokenizer_task: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.name) is not None,
            f"variants: a name may contain letters, digits, dots and dashes, got {self.name!r}",
        )
        check(
            len(self.name) <= _LONGEST_NAME,
            f"variants: a name may have {_LONGEST_NAME} characters, got {len(self.name)} in {self.name[:20]}...",
        )
        check(
            self.order in SCAN_ORDERS,
            f"variants: order of {self.name} must be one of {', '.join(SCAN_ORDERS)}, got {self.order!r}",
        )


@dataclass(frozen=True, kw_only=True)
class StudyRecipe:
    """All settings of a study.

    Attributes:
        kind: What the study compares; it decides the table and the figure.
        description: One line for people.
        budget: Images that every run trains on; in ``guidance``, samples of every setting.
        seeds: Seeds; every variant is trained once with each.
        warmup: Fraction of the steps in which the learning rate rises.
        data: The images.
        model: Settings of the model that all variants share.
        fit: Settings of the training loop, without ``steps``, ``warmup_steps`` and ``seed``.
        task: Settings of the loss and the sample sheets, without ``tokenizer``.
        variants: The generators to compare.
        judging: How they are sampled and evaluated.
        sweep: How ``baseline`` finds learning rates.
        speed: At which sizes ``baseline`` and ``guidance-free`` measure speed.
        tokenizer: What the tokenizers of ``tokenizer`` share.
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
    tokenizer: TokenizerConfig | None = None

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The frozen sentence encoders that variants name."""
        named = ({**self.task, **variant.task}.get(_TEXT_ENCODER) for variant in self.variants)
        return tuple(dict.fromkeys(str(name) for name in named if name))

    def with_text_encoder(self, place: str) -> "StudyRecipe":
        """Return the study with another sentence encoder in all variants that have one.

        Raises:
            ConfigError: None has.
        """
        check(bool(self.text_encoders), f"study {self.kind} has no frozen sentence encoder; leave --text-encoder out")
        changed = {_TEXT_ENCODER: place}
        variants = (
            replace(variant, task={**variant.task, **changed}) if variant.task.get(_TEXT_ENCODER) else variant
            for variant in self.variants
        )
        task = {**self.task, **changed} if self.task.get(_TEXT_ENCODER) else self.task
        return replace(self, task=task, variants=tuple(variants))

    def __post_init__(self) -> None:
        check_budget(self.budget, "budget", compared=self.kind == "guidance")
        check(len(self.seeds) > 0, "seeds must hold at least one number")
        for seeds in (self.seeds, *(variant.seeds for variant in self.variants)):
            check(
                len(set(seeds)) == len(seeds) and min(seeds, default=0) >= 0,
                f"seeds must be different numbers, none negative, got {list(seeds)}",
            )
        self._check_decided()
        check(
            self.kind == "guidance" or self.data.crop == "center",
            "data.crop must be 'center' in a study: the images of its generators are encoded once, before training",
        )
        check(0 <= self.warmup <= 1, f"warmup must lie in [0, 1], got {self.warmup}")
        names = [variant.name for variant in self.variants]
        twice = [name for name in names if names.count(name) > 1]
        check(not twice, f"variants: {', '.join(twice[:1])} appears twice; give each variant a different name")
        check(self.kind == "guidance" or bool(names), f"a study of kind {self.kind!r} needs variants")
        own = self.kind == "tokenizer"
        settings = [variant.name for variant in self.variants if variant.tokenizer or variant.tokenizer_task]
        check(
            own == (self.tokenizer is not None) and (own or not settings),
            "a study of kind 'tokenizer' needs the section tokenizer, and no other kind has it or variants with "
            f"settings of a tokenizer; this one is of kind {self.kind!r}",
        )
        if self.kind == "guidance-free":
            moved = [variant.name for variant in self.variants if variant.order != "raster" or variant.model]
            check(
                not moved and not self.model,
                f"a study of kind 'guidance-free' keeps shape and order of its model; leave out model and order"
                f"{''.join(f' of {name}' for name in moved[:1])}",
            )
        if self.kind == "text":
            moved = [variant.name for variant in self.variants if variant.order != "raster"]
            check(not moved, f"order of {''.join(moved[:1])}: a study of kind 'text' needs the order 'raster'")
        if self.kind == "baseline":
            check(self.sweep is not None, "a study of kind 'baseline' needs the section sweep")
            families = list(dict.fromkeys(variant.family for variant in self.variants))
            sizes = [{v.size: v.seeds for v in self.variants if v.family == family} for family in families]
            check(
                len(families) >= 2 and all(those == sizes[0] for those in sizes),
                "a study of kind 'baseline' needs two or more families of variants with the same sizes and seeds, got "
                f"{', '.join(f'{v.family} {v.size}' for v in self.variants)}",
            )

    def _check_decided(self) -> None:
        sections = [("fit", self.fit), ("task", self.task), ("model", self.model)]
        sections += [(name, getattr(variant, name)) for variant in self.variants for name in ("task", "model")]
        sections += [] if self.tokenizer is None else [("fit", self.tokenizer.fit)]
        for section, values in sections:
            for name in _DECIDED[section]:
                check(name not in values, f"{section}.{name} is decided by the study; leave it out")


def study_names() -> list[str]:
    """Return the names of the packaged studies, sorted."""
    return _PACKAGED.names()


def load_study(name_or_path: str) -> StudyRecipe:
    """Load a study.

    Args:
        name_or_path: Name of a packaged study, or path of a TOML file (with a slash or ``.toml`` in it).

    Raises:
        ConfigError: The study does not exist or is not valid TOML, or a setting is unknown or has a wrong value.
    """
    return from_mapping(StudyRecipe, _PACKAGED.read(name_or_path), where=name_or_path)


def training_recipe(
    study: StudyRecipe, variant: Variant, *, tokenizer: str, budget: int, seed: int, lr: float | None = None
) -> Recipe:
    """Return the training recipe of a variant.

    Args:
        study: The study.
        variant: One of its variants.
        tokenizer: The tokenizer that makes the codes: a run, a saved model or a hub id.
        budget: Images to train on, rounded down to whole batches, but at least one batch.
        seed: Seed of the weights, the order of the images and dropout.
        lr: Highest learning rate; overrides that of the variant.

    Raises:
        ConfigError: A setting of ``fit`` is unknown or out of range.
    """
    chosen = variant.lr if lr is None else lr
    settings = study.fit if chosen is None else {**study.fit, "lr": chosen}
    return Recipe(
        stage="generator",
        description=f"{variant.name} of the study {study.kind}",
        data=study.data,
        model={**study.model, **variant.model},
        fit=_fit(study, settings, budget, seed, f"{study.kind}: fit"),
        task={**study.task, **variant.task, "tokenizer": tokenizer},
    )


def tokenizer_recipe(study: StudyRecipe, variant: Variant, *, budget: int, seed: int) -> Recipe:
    """Return the training recipe of the tokenizer of a variant of the study ``tokenizer``.

    Args:
        study: The study.
        variant: One of its variants.
        budget: Images that the generators train on.
        seed: Seed of the weights and of the order of the images.

    Raises:
        ConfigError: A setting of ``tokenizer.fit`` is unknown or out of range.
    """
    shared = study.tokenizer
    assert shared is not None
    return Recipe(
        stage="tokenizer",
        description=f"tokenizer of {variant.name} of the study {study.kind}",
        data=study.data,
        model={**shared.model, **variant.tokenizer},
        fit=_fit(study, shared.fit, round(shared.share * budget), seed, f"{study.kind}: tokenizer.fit"),
        task={**shared.task, **variant.tokenizer_task},
    )


def _fit(study: StudyRecipe, values: Mapping[str, Any], budget: int, seed: int, where: str) -> FitConfig:
    """Return the settings of a loop that takes as many steps as the budget has batches."""
    size = values.get("batch_size", 1)
    steps = max(1, budget // max(1, size if isinstance(size, int) else 1))
    fixed = {"steps": steps, "warmup_steps": round(study.warmup * steps), "seed": seed}
    # All variants are compared after the same number of images.
    return from_mapping(FitConfig, {"keep": "last", **values, **fixed}, where=where)
