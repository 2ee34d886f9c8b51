"""Settings of sampling, and guidance schedules."""

import math
import sys
from dataclasses import dataclass, fields
from typing import Literal

from aimamba.config import check, check_text, pythonic
from aimamba.seeds import shown

LARGEST_SCALE = 1e6
"""Of guidance: logits times much more would not fit into float32. Of the power of a schedule as well."""

LARGEST_TOP_K = (1 << 31) - 1

_NUMBERS = ("temperature", "temperature_end", "top_p", "min_p", "cfg_scale", "cfg_power", "cfg_start", "cfg_end")
_WHOLE_NUMBERS = ("top_k", "seed")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of sampling. The defaults sample from the model's own distribution.

    Attributes:
        temperature: Divides the logits; 0 always takes the most likely token.
        temperature_end: Temperature of the last token; between it and the first token, at ``temperature``, it changes
            linearly. None keeps it constant.
        top_k: Sample among the k most likely tokens; 0 means all.
        top_p: Sample among the most likely tokens that together reach this probability, in (0, 1].
        min_p: Leave out tokens less likely than this share of the most likely one's probability, in [0, 1); 0 means
            none (arXiv 2407.01082).
        cfg_scale: Scale of classifier-free guidance, ``u + scale (c - u)`` of unconditional logits u and conditional
            logits c. 1 means no guidance and needs no unconditional rows. The paper's FIDs use 2.0 for AiM-B and
            1.75 for AiM-L and AiM-XL.
        cfg_schedule: The scale from the first token to the last: ``constant``; ``linear``, from 1 to the scale;
            ``power-cosine``, ``1 + (scale - 1) (1 - cos(pi t^power)) / 2`` with t from 0 to 1 (as in RAR,
            arXiv 2411.00776, and MDTv2, arXiv 2303.14389).
        cfg_power: The power of ``power-cosine``; a larger one keeps the scale low for longer.
        cfg_start: Where guidance begins, as a share of the image's tokens in [0, 1].
        cfg_end: Where guidance ends; tokens at and after this share are not guided (an interval of guidance, as in
            arXiv 2404.07724), and from there on a guided image costs one pass instead of two.
        negative: A class to be guided away from, in place of the null class: its number, or for a ``Pipeline`` its
            name. Without guidance it has no effect.
        seed: Seed of the first image; each further image adds 1.
    """

    temperature: float = 1.0
    temperature_end: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    cfg_scale: float = 1.0
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = "constant"
    cfg_power: float = 1.0
    cfg_start: float = 0.0
    cfg_end: float = 1.0
    negative: int | str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*_NUMBERS, *_WHOLE_NUMBERS, "negative"):
            object.__setattr__(self, name, pythonic(getattr(self, name)))
        for name in (*_NUMBERS, *_WHOLE_NUMBERS):
            value, said = getattr(self, name), name.replace("_", "-")
            if value is None and name == "temperature_end":
                continue
            kind, words = (int, "whole number") if name in _WHOLE_NUMBERS else (int | float, "number")
            fits = isinstance(value, kind) and not isinstance(value, bool)
            check(fits, "" if fits else f"{said} must be a {words}, got {value!r}")
            fits = name in _WHOLE_NUMBERS or isinstance(value, float) or abs(value) <= sys.float_info.max
            check(fits, f"{said} must be a number below 1.8e308, got one of 309 digits or more")
        check(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature must be 0 (always the most likely token) or more, got {self.temperature}",
        )
        end = self.temperature_end
        check(end is None or 0 <= end < math.inf, f"temperature-end must be 0 or more, got {end}")
        check(
            0 <= self.top_k <= LARGEST_TOP_K,
            f"top-k must be 0 (all tokens) or more, at most {LARGEST_TOP_K:,}, got {shown(self.top_k)}",
        )
        check(0 < self.top_p <= 1, f"top-p must be in (0, 1], where 1 keeps all tokens, got {self.top_p}")
        check(0 <= self.min_p < 1, f"min-p must be in [0, 1), where 0 keeps all tokens, got {self.min_p}")
        check(
            0 <= self.cfg_scale <= LARGEST_SCALE,
            f"cfg-scale must be from 0 to {LARGEST_SCALE:,.0f}, where 1 means no guidance, got {self.cfg_scale}",
        )
        check(
            self.cfg_schedule in ("constant", "linear", "power-cosine"),
            f"cfg-schedule must be constant, linear or power-cosine, got {self.cfg_schedule!r}",
        )
        check(
            0 < self.cfg_power <= LARGEST_SCALE,
            f"cfg-power must be above 0 and at most {LARGEST_SCALE:,.0f}, got {self.cfg_power}",
        )
        check(
            0 <= self.cfg_start < self.cfg_end <= 1,
            "cfg-start and cfg-end must be shares of the image's tokens with 0 <= start < end <= 1, got "
            f"{self.cfg_start} and {self.cfg_end}",
        )
        if self.negative is not None:
            fits = isinstance(self.negative, int | str) and not isinstance(self.negative, bool)
            check(fits, f"negative must be a class, got {self.negative!r}")
            check_text("negative", str(self.negative))
        check(0 <= self.seed < 1 << 63, f"seed must be in [0, 2^63), got {shown(self.seed)}")

    def without_effect(self) -> dict[str, str]:
        """Return the settings that differ from their defaults and cannot act beside the others, and why."""
        found: dict[str, str] = {}
        if self.temperature == 0 and not self.temperature_end:
            found |= dict.fromkeys(("top_k", "top_p", "min_p"), "at temperature 0")
        if self.cfg_scale == 1:
            names = ("cfg_schedule", "cfg_power", "cfg_start", "cfg_end", "negative")
            found |= dict.fromkeys(names, "without guidance; give cfg_scale, such as 2")
        elif self.cfg_schedule != "power-cosine":
            found["cfg_power"] = f"with cfg_schedule {self.cfg_schedule}; it is for power-cosine"
        defaults = {field.name: field.default for field in fields(self)}
        return {name: reason for name, reason in found.items() if getattr(self, name) != defaults[name]}

    def guidance_at(self, index: int, length: int) -> float:
        """Return the guidance scale for token ``index`` of ``length``; 1 outside of the interval of guidance."""
        if not round(self.cfg_start * length) <= index < round(self.cfg_end * length):
            return 1.0
        if self.cfg_schedule == "constant":
            return self.cfg_scale
        t = index / max(1, length - 1)
        rise = t if self.cfg_schedule == "linear" else (1 - math.cos(math.pi * t**self.cfg_power)) / 2
        return 1 + (self.cfg_scale - 1) * rise

    def temperature_at(self, index: int, length: int) -> float:
        """Return the temperature for token ``index`` of ``length``."""
        if self.temperature_end is None:
            return self.temperature
        return self.temperature + (self.temperature_end - self.temperature) * index / max(1, length - 1)

    def describe(self) -> str:
        """Return guidance, seed, and other settings that are not the defaults, as text."""
        schedule = "" if self.cfg_schedule == "constant" else f" {self.cfg_schedule}"
        parts = [f"guidance {self.cfg_scale:g}{schedule}"]
        start, end = self.cfg_start, self.cfg_end
        parts += [f"from {start:g} to {end:g} of the tokens"] if (start, end) != (0, 1) else []
        parts += [] if self.negative is None else [f"away from class {self.negative}"]
        last = "" if self.temperature_end is None else f" to {self.temperature_end:g}"
        parts += [f"temperature {self.temperature:g}{last}"] if self.temperature != 1 or last else []
        parts += [f"top-k {self.top_k}"] if self.top_k else []
        parts += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"min-p {self.min_p:g}"] if self.min_p else []
        return ", ".join([*parts, f"seed {self.seed}"])
