"""The settings of sampling on the page, and what the page sends of them."""

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from aimamba.config import from_mapping, to_mapping
from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.serve.errors import ApiError

FIRST = SamplingConfig(cfg_scale=1.5, temperature=0.8, seed=7)
"""What a newcomer begins with."""

_RANDOM_SEEDS = 1 << 32
_NUMBERS = ("cfg_scale", "temperature", "top_k", "top_p")
_LOWEST = {"cfg_scale": 1.0, "top_p": 0.05}
_HIGHEST = {"cfg_scale": 6.0, "temperature": 2.0}  # of the sliders; images with more can still be opened


class Controls(NamedTuple):
    """The controls, in the order in which handlers get their values."""

    cfg_scale: Any
    temperature: Any
    top_k: Any
    top_p: Any
    negative: Any
    seed: Any
    more: Any


def make_controls(vocabulary: int, *, prompts: bool = False) -> Controls:
    """Place the controls where the page is being built.

    Args:
        vocabulary: Number of codes.
        prompts: Whether the model takes prompts, and so negative ones.
    """
    return Controls(
        cfg_scale=gr.Slider(
            1, _HIGHEST["cfg_scale"], FIRST.cfg_scale, step=0.05, label="Guidance", elem_id="cfg_scale",
            info="How strictly the image keeps to its class; 1 leaves the model free, high values look alike.",
        ),
        temperature=gr.Slider(
            0, _HIGHEST["temperature"], FIRST.temperature, step=0.05, label="Temperature", elem_id="temperature",
            info="How daring each choice is: low is tidy, 1 is as the model learned it, 0 takes the likeliest.",
        ),
        top_k=gr.Slider(
            0, vocabulary, FIRST.top_k, step=1, label="Top-k", elem_id="top_k",
            info="Choose each token among the k likeliest only; 0 allows all of them.",
        ),
        top_p=gr.Slider(
            0.05, 1, FIRST.top_p, step=0.01, label="Top-p", elem_id="top_p",
            info="Choose among the likeliest tokens that together reach this probability; 1 allows all.",
        ),
        negative=gr.Textbox(
            "", label="Rather not", max_lines=1, max_length=2000, elem_id="negative", visible=prompts,
            info="A prompt to be guided away from; it acts where guidance is above 1.",
        ),
        seed=gr.Textbox(
            str(FIRST.seed), label="Seed", max_lines=1, elem_id="seed",
            info="The number that decides all chances: the same seed and settings give the same image.",
        ),
        more=gr.HTML(
            value={}, html_template="<div class='more'></div>", js_on_load="window.studio.more(element, props, watch)",
            apply_default_css=False, elem_id="more",
        ),
    )  # fmt: skip


def read_controls(values: Sequence[Any]) -> SamplingConfig:
    """Return settings from the values of the controls.

    Raises:
        ApiError: One is no number or out of range.
    """
    given = dict(zip(Controls._fields, values, strict=True))
    seed = str(given["seed"]).strip()
    if not (seed.isascii() and seed.isdigit() and len(seed) <= 19):
        raise ApiError(422, f"the seed must be a whole number from 0 to 2^63 - 1, got {seed[:40]!r}", field="seed")
    numbers = {name: _number(given[name], name) for name in _NUMBERS}
    more = given["more"] if isinstance(given["more"], dict) else {}
    negative = {"negative": given["negative"]} if str(given["negative"] or "").strip() else {}
    try:
        return from_mapping(
            SamplingConfig,
            {**more, **numbers, **negative, "top_k": int(numbers["top_k"]), "seed": int(seed)},
            where="settings",
        )
    except ConfigError as error:
        raise ApiError(422, str(error)) from error


def show_controls(config: SamplingConfig, vocabulary: int) -> list[Any]:
    """Return updates that make the controls show settings; what has no control of its own is named below them."""
    updates = []
    for name in _NUMBERS:
        value = getattr(config, name)
        wider: dict[str, Any] = {}
        if value > {**_HIGHEST, "top_k": vocabulary}.get(name, value):
            wider["maximum"] = value
        if value < _LOWEST.get(name, value):
            wider["minimum"] = value
        updates.append(gr.update(value=value, **wider))
    plain, values = to_mapping(SamplingConfig()), to_mapping(config)
    kept = {"negative"} if isinstance(config.negative, int) else set()  # a class has no control
    more = {
        name: value
        for name, value in values.items()
        if (name not in Controls._fields or name in kept) and value != plain.get(name)
    }
    return [*updates, config.negative if isinstance(config.negative, str) else "", str(config.seed), more]


def other_seed() -> str:
    """Return a random seed for the field."""
    return str(secrets.randbelow(_RANDOM_SEEDS))


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(422, f"{name.replace('_', '-')} must be a number, got {str(value)[:40]!r}", field=name)
    return float(value)
