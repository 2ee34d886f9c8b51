"""How to train: the settings of the loop."""

import dataclasses
import math
from typing import Literal

from aimamba.config import check
from aimamba.train.optim import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train.

    Attributes:
        steps: Updates of the weights in all.
        batch_size: Images in each.
        lr: Highest learning rate.
        betas: AdamW's decay of the first and second moment.
        weight_decay: AdamW's decay of matrices.
        warmup_steps: Steps in which the learning rate rises.
        schedule: How it falls afterwards.
        final_lr_fraction: Where it falls to, as a fraction of ``lr``.
        clip_norm: Longest gradient, over all parameters of a network together; 0 is no limit.
        ema_decay: Decay of the average that is judged and kept; 0 is no average.
        accumulation: Parts into which a batch is cut to save memory; the gradient is the same up to rounding, but for
            a discriminator, whose batch norms see one part at a time.
        precision: Of the forward pass in training; weights, updates and evaluation are float32. ``auto`` is bfloat16 on
            devices that multiply it clearly faster than float32, else float32.
        compile: Whether ``torch.compile`` fuses the passes of a generator: of the whole, whose first step then takes a
            minute or two, or of its ``blocks`` one by one, which takes seconds. On CPU it needs a C++ compiler and
            hardly gains, because the middle of a mixer is a kernel already (docs/speed.md).
        seed: Of the randomness in the loss.
        log_every: Steps between lines of training metrics.
        evaluate_every: Steps between held-out metrics; 0 is only at the end.
        sheet_every: Steps between sample sheets; 0 is only at the end.
        checkpoint_every: Steps between checkpoints; 0 is only at the end and on interruption.
    """

    steps: int
    batch_size: int
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    final_lr_fraction: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    accumulation: int = 1
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    compile: bool | Literal["blocks"] = False
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    sheet_every: int = 0
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "log_every"):
            check(getattr(self, name) >= 1, f"fit.{name} must be at least 1, got {getattr(self, name)}")
        intervals = ("evaluate_every", "sheet_every", "checkpoint_every")
        for name in ("weight_decay", "warmup_steps", "clip_norm", "seed", *intervals):
            check(getattr(self, name) >= 0, f"fit.{name} must not be negative, got {getattr(self, name)}")
        check(0 < self.lr < math.inf, f"fit.lr must be positive, got {self.lr}")
        check(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"fit.betas must be two numbers in [0, 1), got {list(self.betas)}",
        )
        check(0 <= self.ema_decay < 1, f"fit.ema_decay must be in [0, 1), got {self.ema_decay}")
        check(
            0 <= self.final_lr_fraction <= 1, f"fit.final_lr_fraction must be in [0, 1], got {self.final_lr_fraction}"
        )
        check(
            self.batch_size % self.accumulation == 0,
            f"fit.accumulation must divide fit.batch_size = {self.batch_size}, got {self.accumulation}",
        )
