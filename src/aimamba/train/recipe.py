"""Recipes: everything a training run depends on, in one TOML file, packaged or the user's own.

Defaults < preset < recipe < flags. The sections ``model`` and ``task`` stay plain mappings here; the stage knows what
they mean.
"""

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from aimamba.config import check, from_mapping
from aimamba.errors import ConfigError, suggest
from aimamba.train.settings import FitConfig
from aimamba.train.toml import read_toml


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images to learn from, and how to look at them.

    Attributes:
        source: ``avatars``, chosen styles as ``avatars:planets,sprouts``, ``fashion-mnist``, a folder of class
            sub-folders, or, for a generator, a folder of codes.
        size: Side of the square images in pixels.
        per_class: Images of each class to train on; all there are unless given.
        skip_per_class: Avatars of each class to pass over first, such as those that an earlier run has seen.
        held_out_per_class: Images of each class to judge by; all there are unless given.
        crop: Whether training sees the middle of an image or a random part of it.
        flip: Whether training sees half of the images mirrored.
        upscale: Whether an image smaller than ``size`` is enlarged rather than an error.
        max_broken: Broken files to pass over; 1 % of them, but at least 10, unless given.
        strict: Whether a broken file is an error rather than a warning.
    """

    source: str = "avatars"
    size: int = 64
    per_class: int | None = None
    skip_per_class: int = 0
    held_out_per_class: int | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    upscale: bool = False
    max_broken: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "per_class", "held_out_per_class"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"data.{name} must be at least 1, got {value}")
        check(self.skip_per_class >= 0, f"data.skip_per_class must not be negative, got {self.skip_per_class}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, on what, and how; ``aimamba.config.to_mapping`` and ``to_toml`` write it back.

    Attributes:
        stage: Which of the two stages.
        description: A line for people.
        init: A saved model to start from, whose shape is then kept; a new set of classes gets a new class table.
        data: The images.
        model: Settings of the model: perhaps a ``preset``, and what differs from it.
        fit: Settings of the loop.
        task: Settings of the loss and the sample sheet.
    """

    stage: Literal["tokenizer", "generator"]
    description: str = ""
    init: str | None = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    fit: FitConfig
    task: dict[str, Any] = dataclasses.field(default_factory=dict)


def recipe_names() -> list[str]:
    """Name the packaged recipes."""
    files = (Path(entry.name) for entry in resources.files("aimamba").joinpath("recipes").iterdir())
    return sorted(file.stem for file in files if file.suffix == ".toml")


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and put flags over it.

    Args:
        name_or_path: A packaged recipe's name, or the path of a TOML file (with a slash or ``.toml`` in it).
        overrides: Settings by dotted name, ``{"fit.steps": 100, "data.source": "photos"}``. A string is read as a TOML
            value if it is one (``"100"``, ``"true"``, ``"[0.9, 0.95]"``) and taken as it stands if not.

    Raises:
        ConfigError: There is no such recipe, it is not TOML, or a setting is unknown or does not fit.
    """
    if name_or_path.endswith(".toml") or os.sep in name_or_path or "/" in name_or_path:
        values = read_toml(Path(name_or_path).expanduser())
    elif name_or_path in (names := recipe_names()):
        packaged = resources.files("aimamba").joinpath("recipes", f"{name_or_path}.toml")
        values = tomllib.loads(packaged.read_text(encoding="utf-8"))
    else:
        raise ConfigError(
            f"unknown recipe {name_or_path!r}{suggest(name_or_path, names)}; "
            f"known recipes: {', '.join(names)}; or give the path of a .toml file"
        )
    for name, value in (overrides or {}).items():
        _override(values, name, _parsed(value) if isinstance(value, str) else value)
    return from_mapping(Recipe, values, where=name_or_path)


def _override(values: dict[str, Any], name: str, value: Any) -> None:
    """Set ``name``, checked as far as it can be here, in ``values``."""
    fields: dict[str, type] = {"data": DataConfig, "fit": FitConfig}
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
    if key:
        table = values.setdefault(section, {})
        if isinstance(table, dict):  # if not, reading the recipe will say so
            table[key] = value
    else:
        values[name] = value


def _parsed(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    plain = value.keys() == {"value"} and isinstance(value["value"], str | bool | int | float | list)
    return value["value"] if plain else text
