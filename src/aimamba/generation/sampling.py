"""Settings of sampling, and guidance schedules."""

import math
import numbers
from dataclasses import dataclass
from typing import Literal

from aimamba.config import check
from aimamba.seeds import shown

_KINDS = (
    *((name, numbers.Real, "number") for name in ("temperature", "top_p", "cfg_scale", "cfg_power")),
    *((name, numbers.Integral, "whole number") for name in ("top_k", "seed")),
)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of sampling. The defaults sample from the model's own distribution.

    Attributes:
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Sample among the k most likely tokens; 0 means all.
        top_p: Sample among the most likely tokens that together reach this probability, in (0, 1].
        cfg_scale: Scale of classifier-free guidance, ``u + scale (c - u)`` of unconditional logits u and conditional
            logits c. 1 means no guidance and needs no unconditional rows. The paper's FIDs use 2.0 for AiM-B and
            1.75 for AiM-L and AiM-XL.
        cfg_schedule: The scale from the first token to the last: ``constant``; ``linear``, from 1 to the scale;
            ``power-cosine``, ``1 + (scale - 1) (1 - cos(pi t^power)) / 2`` with t from 0 to 1 (as in RAR,
            arXiv 2411.00776, and MDTv2, arXiv 2303.14389).
        cfg_power: The power of ``power-cosine``; a larger one keeps the scale low for longer.
        seed: Seed of the first image; each further image adds 1.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 1.0
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = "constant"
    cfg_power: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind, words in _KINDS:
            value = getattr(self, name)
            fits = isinstance(value, kind) and not isinstance(value, bool)
            check(fits, "" if fits else f"{name.replace('_', '-')} must be a {words}, got {value!r}")
        check(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature must be 0 (always the most likely token) or more, got {self.temperature}",
        )
        check(self.top_k >= 0, f"top-k must be 0 (all tokens) or more, got {self.top_k}")
        check(0 < self.top_p <= 1, f"top-p must be in (0, 1], where 1 keeps all tokens, got {self.top_p}")
        check(
            math.isfinite(self.cfg_scale) and self.cfg_scale >= 0,
            f"cfg-scale must be 0 or more, where 1 means no guidance, got {self.cfg_scale}",
        )
        check(
            self.cfg_schedule in ("constant", "linear", "power-cosine"),
            f"cfg-schedule must be constant, linear or power-cosine, got {self.cfg_schedule!r}",
        )
        check(
            math.isfinite(self.cfg_power) and self.cfg_power > 0,
            f"cfg-power must be above 0, got {self.cfg_power}",
        )
        check(0 <= self.seed < 1 << 63, f"seed must be in [0, 2^63), got {shown(self.seed)}")

    def guidance_at(self, index: int, length: int) -> float:
        """Return the guidance scale for token ``index`` of ``length``."""
        if self.cfg_schedule == "constant":
            return self.cfg_scale
        t = index / max(1, length - 1)
        rise = t if self.cfg_schedule == "linear" else (1 - math.cos(math.pi * t**self.cfg_power)) / 2
        return 1 + (self.cfg_scale - 1) * rise

    def describe(self) -> str:
        """Return guidance, seed, and other settings that are not the defaults, as text."""
        schedule = "" if self.cfg_schedule == "constant" else f" {self.cfg_schedule}"
        parts = [f"guidance {self.cfg_scale:g}{schedule}"]
        parts += [f"temperature {self.temperature:g}"] if self.temperature != 1 else []
        parts += [f"top-k {self.top_k}"] if self.top_k else []
        parts += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        return ", ".join([*parts, f"seed {self.seed}"])
