"""Recipes: everything that a training run depends on, in one TOML file.

Settings are taken from the defaults, the preset, the recipe and the flags; the later one wins. The sections ``model``
and ``task`` stay plain mappings here, because their fields depend on the stage (see ``train.stages``).
"""

import copy
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from aimamba.checkpoints.locate import is_here
from aimamba.config import check, flatten, from_mapping
from aimamba.documents import parse_toml
from aimamba.errors import CheckpointError, ConfigError, suggest
from aimamba.train.parallel.layout import ParallelConfig
from aimamba.train.recipe_files import RecipeFiles
from aimamba.train.settings import FitConfig

_PACKAGED = RecipeFiles("recipe", "recipes", folder="recipes")
_MOST_WORKERS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images to train on, and how to prepare them.

    Attributes:
        source: ``avatars``, some styles as in ``avatars:planets,sprouts``, ``captioned-avatars``, ``fashion-mnist``,
            ``emoji``, a folder with one sub-folder for each class, a ``.tar`` archive of ``webdataset`` or a folder of
            such, or, for a generator, a folder of codes.
        size: Side of the square images in pixels; 0 takes that of the generator in ``init``.
        per_class: Images of each class to train on; by default all.
        skip_per_class: Avatars of each class to skip first, for example those that an earlier run was trained on.
        variants: Of emoji: at most this many variants of one thing (skin tone, sex, direction) in each design. More
            than half of the pictures are such, and a model otherwise learns little else.
        held_out_per_class: Images of each class to evaluate on; by default all.
        crop: Whether to train on the centre of an image or on a random crop.
        flip: Whether to mirror half of the training images.
        moved: Of a generator's images: views of each, beside the centre, that are moved and scaled a little. A small
            set is then not memorised as soon.
        upscale: Whether to enlarge images that are smaller than ``size``; otherwise they are an error.
        max_broken: Most broken files to skip; by default 1 % of the files, but at least 10.
        strict: Whether a broken file is an error instead of a warning.
        workers: Processes that decode a tokenizer's images ahead of the steps; 0 decodes between them. The images are
            the same for any number. A generator learns codes, which need none.
    """

    source: str = "avatars"
    size: int = 64
    per_class: int | None = None
    skip_per_class: int = 0
    variants: int | None = None
    held_out_per_class: int | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    moved: int = 0
    upscale: bool = False
    max_broken: int | None = None
    strict: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        check(self.size >= 0, f"data.size must not be negative, got {self.size}")
        for name in ("per_class", "held_out_per_class", "variants"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"data.{name} must be at least 1, got {value}")
        check(0 <= self.moved <= 64, f"data.moved must be from 0 to 64, got {self.moved}")
        check(not (self.moved and self.flip), "data.moved and data.flip are two kinds of views; leave one out")
        for name in ("skip_per_class", "workers"):
            check(getattr(self, name) >= 0, f"data.{name} must not be negative, got {getattr(self, name)}")
        check(self.workers <= _MOST_WORKERS, f"data.workers must be at most {_MOST_WORKERS}, got {self.workers}")

    def check_size(self, downsampling: int) -> None:
        """Check that a tokenizer can encode images of this size.

        Args:
            downsampling: Pixels of a side of a code.

        Raises:
            ConfigError: It cannot.
        """
        check(self.size > 0, "data.size = 0 is the size of the images of a generator's 'init'; give the size in pixels")
        check(
            self.size % downsampling == 0,
            f"data.size must be a multiple of the tokenizer's down-sampling {downsampling}, got {self.size}",
        )

    def images(self) -> dict[str, Any]:
        """Return what decides the images, as the arguments of ``data.sets.open_splits``."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("workers", "moved")}

    @property
    def views(self) -> str:
        """The views that a generator's images are encoded in, see ``data.codes.view_names``."""
        if self.moved:
            return f"moved-{self.moved}"
        return "center-flip" if self.flip else "center"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run.

    ``config.to_mapping`` and ``toml.to_toml`` turn it back into TOML.

    Attributes:
        stage: Which model to train.
        description: One line for people; it has no effect.
        init: A saved model to start from. Its shape is kept; ``task.classes`` says what becomes of its classes.
        data: The images.
        model: Settings of the model: optionally a ``preset``, and the fields that differ from it.
        fit: Settings of the training loop.
        parallel: How the processes share the work, where torchrun starts several.
        task: Settings of the loss and the sample sheets.
    """

    stage: Literal["tokenizer", "generator"]
    description: str = ""
    init: str | None = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    fit: FitConfig
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    task: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.init != "", "init is empty; name a model in it or with --init, or leave it out")


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes, sorted."""
    return _PACKAGED.names()


def check_trained(recipe: Recipe) -> None:
    """Refuse models that are missing and that recipes make, or that would be in ``runs``: no names to ask the hub for.

    Raises:
        CheckpointError: ``init`` or the tokenizer is one.
    """
    named = {"model": (recipe.init, "--init"), "tokenizer": (recipe.task.get("tokenizer"), "--tokenizer")}
    for what, (place, option) in named.items():
        if not isinstance(place, str) or is_here(place):
            continue
        name, made_here = Path(place).name, Path(place).parts[:1] == ("runs",)
        if name in recipe_names() or made_here:
            how = f"train it first ('aimamba train {name}')" if name in recipe_names() else "make it first"
            raise CheckpointError(f"the {what} {place} does not exist yet: {how}, or give another with {option}")


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe and apply overrides to it.

    Args:
        name_or_path: Name of a packaged recipe, or path of a TOML file (with a slash or ``.toml`` in it).
        overrides: Settings by dotted name, as in ``{"fit.steps": 100, "data.source": "photos"}``. A string that is a
            TOML value (``"100"``, ``"true"``, ``"[0.9, 0.95]"``) is read as one; any other string is taken literally.

    Returns:
        The recipe. The sections ``model`` and ``task`` are not checked yet. Its description is of what is trained: the
        recipe's own one, unless overrides change it.

    Raises:
        ConfigError: The recipe does not exist or is not valid TOML, or a setting is unknown or has a wrong value.
    """
    original = _PACKAGED.read(name_or_path)
    values = copy.deepcopy(original)
    for name, value in (overrides or {}).items():
        _override(values, name, _parsed(value) if isinstance(value, str) else value)
    recipe = from_mapping(Recipe, values, where=name_or_path)
    if "description" in (overrides or {}):
        return recipe
    before = dict(flatten(original))
    changed = [name for name, value in flatten(values) if value != before.get(name)]
    return dataclasses.replace(recipe, description=_description(recipe, name_or_path, changed))


def recipe_text(name_or_path: str) -> str:
    """Return the file of a recipe, with its comments; arguments and errors as of ``load_recipe``."""
    return _PACKAGED.text(name_or_path)


def _description(recipe: Recipe, name: str, changed: Collection[str]) -> str:
    """Describe a recipe of which some settings, by dotted name, are not those of its file."""
    if {"data.source", "data.size", "stage"} & set(changed):
        size = f" at {recipe.data.size} pixels" if recipe.data.size else ""
        return f"a {recipe.stage} for {recipe.data.source}{size}, from the recipe {name}"
    if changed and recipe.description:
        return f"{recipe.description}; changed: {', '.join(changed)}"
    return recipe.description


def _override(values: dict[str, Any], name: str, value: Any) -> None:
    """Set ``name`` in ``values``; names in ``model`` and ``task`` are checked later, with the stage."""
    fields: dict[str, type] = {"data": DataConfig, "fit": FitConfig, "parallel": ParallelConfig}
    known = [
        "stage",
        "description",
        "init",
        *(f"{key}.{f.name}" for key, cls in fields.items() for f in dataclasses.fields(cls)),
    ]
    section, _, key = name.partition(".")
    if name not in known and not (section in ("model", "task") and key):
        near = suggest(name, known) or suggest(name, [entry.partition(".")[2] for entry in known])
        raise ConfigError(f"unknown setting {name!r}{near}; settings are written section.key, as in fit.steps")
    *tables, last = name.split(".")
    table = values
    for depth, part in enumerate(tables):
        if not isinstance(table.setdefault(part, {}), dict):
            raise ConfigError(f"setting {name!r}: {'.'.join(tables[: depth + 1])} is not a table of settings")
        table = table[part]
    table[last] = value


def _parsed(text: str) -> Any:
    try:
        value = parse_toml(f"value = {text}")
    except ValueError:
        return text
    plain = value.keys() == {"value"} and isinstance(value["value"], str | bool | int | float | list)
    return value["value"] if plain else text
