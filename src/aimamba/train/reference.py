"""The list of all settings of a recipe, made from the classes that hold them."""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from typing import Any, Literal, get_args, get_origin

from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiMConfig, VQConfig
from aimamba.models.text import TextConfig
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.parallel.layout import ParallelConfig
from aimamba.train.recipe import DataConfig, Recipe
from aimamba.train.settings import FitConfig
from aimamba.train.tokenizer_settings import TokenizerTaskConfig
from aimamba.train.toml import to_toml

_WIDTH = 120
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_HEAD = """# Settings of a recipe

Every setting of a training run, by its section of the recipe, with type and default. On the command line any of them is
changed by its dotted name, as in `--set fit.ema_decay=0.999`. This page is made by `aimamba train --settings`.
"""
_PRESETS = "- `preset` (text, not set): A shape by name, over which the settings below go: {}."


def settings_page() -> str:
    """Return all settings as a page of Markdown, which also reads well as text."""
    sections: list[tuple[str, type, list[str]]] = [
        ("At the top", Recipe, []),
        ("[data]: the images", DataConfig, []),
        ("[model] of a tokenizer", VQConfig, [_PRESETS.format(", ".join(VQ_PRESETS))]),
        ("[model] of a generator", AiMConfig, [_PRESETS.format(", ".join(AIM_PRESETS))]),
        ("[model.text] of a generator that takes captions", TextConfig, []),
        ("[task] of a tokenizer", TokenizerTaskConfig, []),
        ("[task] of a generator", GeneratorTaskConfig, []),
        ("[fit]: the training loop", FitConfig, []),
        ("[parallel]: many processes", ParallelConfig, []),
    ]
    blocks = [_HEAD]
    for title, cls, first in sections:
        items = [*first, *(_item(field, cls) for field in dataclasses.fields(cls) if not _is_left_out(cls, field))]
        blocks.append(f"## {title}\n\n" + "".join(f"{_wrapped(item)}\n" for item in items))
    return "\n".join(blocks)


def describe_fields(cls: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says about each of its fields, under "Attributes"."""
    text = inspect.getdoc(cls) or ""
    _, _, listed = text.partition("Attributes:\n")
    entries = re.split(r"^ {4}(?=\w+: )", listed, flags=re.MULTILINE)[1:]
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries)
    return {name: meaning.replace("``", "`") for name, _, meaning in pairs}


def _is_left_out(cls: type, field: "dataclasses.Field[Any]") -> bool:
    """Return whether a field is a section of its own, or is filled in by training."""
    left_out = {Recipe: ("data", "model", "task", "fit", "parallel"), AiMConfig: ("tokenizer", "text")}
    left_out[TextConfig] = ("features", "encoder")
    return field.name in left_out.get(cls, ())


def _item(field: "dataclasses.Field[Any]", cls: type) -> str:
    kind = _kind(typing.get_type_hints(cls)[field.name])
    return f"- `{field.name}` ({kind}, {_default(field)}): {describe_fields(cls)[field.name]}"


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "not set"
    return f"default `{to_toml({'x': field.default}).removeprefix('x = ').strip()}`"


def _kind(hint: Any, before: Any = None) -> str:
    """Return a type in words; ``before`` is the one that the words stand behind, where there are several."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(hint))
    if origin in (typing.Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return " or ".join(_kind(option, before) for before, option in zip([None, *options], options, strict=False))
    if origin is tuple:
        item = get_args(hint)[0]
        if item == before and get_origin(item) is Literal:
            return f"a list of the last {len(get_args(item))}"
        return f"list of {_kind(item)}s"
    return _WORDS[hint]


def _wrapped(item: str) -> str:
    return "\n".join(
        textwrap.wrap(item, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    )
