"""Settings of the training loop."""

import dataclasses
import math
from typing import Literal

from aimamba.config import check
from aimamba.seeds import shown
from aimamba.train.optim import Schedule

_LARGEST_BATCH = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of the training loop.

    Attributes:
        steps: Total number of weight updates.
        batch_size: Images per update.
        lr: Highest learning rate.
        betas: AdamW's decay of the first and second moment.
        weight_decay: AdamW's weight decay, which applies to matrices only.
        warmup_steps: Steps in which the learning rate rises.
        schedule: How the learning rate falls after the warm-up.
        final_lr_fraction: Learning rate at the end, as a fraction of ``lr``.
        clip_norm: Largest norm of the gradient of all parameters of a network together; 0 is no limit.
        ema_decay: Decay of the moving average of the weights, which is what is evaluated and saved; 0 is no average.
        accumulation: Number of parts into which a batch is split to save memory. The gradient is the same up to
            rounding, except with a discriminator, whose batch norms see one part at a time.
        precision: Precision of the forward pass in training; weights, updates and evaluation are float32. ``auto`` is
            bfloat16 on devices where it is clearly faster than float32, and float32 elsewhere.
        compile: Whether to compile a generator with ``torch.compile``: ``true`` compiles the whole model, so the first
            step takes a minute or two; ``"blocks"`` compiles block by block, which takes seconds. On CPU it needs a
            C++ compiler and gains little, because the centre of a mixer is already one kernel (docs/speed.md).
        cuda_graph: Whether to record forward and backward pass, clipping, optimiser and moving average as one CUDA
            graph, which every step replays. It saves the time in which Python launches kernels; results are the same up
            to rounding. ``auto`` does so for a generator that one process trains on a CUDA device, unless
            ``accumulation`` or ``compile`` is set.
        seed: Seed of the initial weights, the order of the images and the randomness in the loss.
        log_every: Steps between training metrics.
        evaluate_every: Steps between evaluations on held-out images; 0 is only at the end.
        sheet_every: Steps between sample sheets; 0 is only at the end.
        checkpoint_every: Steps between checkpoints; 0 is only at the end and on interruption.
        checkpoints: Number of checkpoints to keep. From 2 on a damaged one costs only the steps since the one before.
        keep: Which model is the result: ``best``, that of the evaluation with the lowest held-out loss, with the last
            one beside it in ``model-last/``; or ``last``. A tokenizer with an adversarial loss keeps the last.
        patience: Evaluations in a row without improvement of the held-out loss after which the run ends; 0 is never.
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
    cuda_graph: bool | Literal["auto"] = "auto"
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    sheet_every: int = 0
    checkpoint_every: int = 1000
    checkpoints: int = 1
    keep: Literal["best", "last"] = "best"
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "log_every", "checkpoints"):
            check(getattr(self, name) >= 1, f"fit.{name} must be at least 1, got {getattr(self, name)}")
        check(
            self.batch_size <= _LARGEST_BATCH,
            f"fit.batch_size must be at most {_LARGEST_BATCH:,}, got {self.batch_size:,}",
        )
        intervals = ("evaluate_every", "sheet_every", "checkpoint_every")
        for name in ("weight_decay", "warmup_steps", "clip_norm", "seed", "patience", *intervals):
            check(getattr(self, name) >= 0, f"fit.{name} must not be negative, got {getattr(self, name)}")
        check(
            not self.patience or self.evaluate_every > 0,
            f"fit.patience = {self.patience} counts evaluations, but fit.evaluate_every is 0; set it too",
        )
        check(self.seed < 1 << 64, f"fit.seed must be below 2^64, got {shown(self.seed)}")
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
        check(
            self.cuda_graph is not True or self.accumulation == 1,
            f"fit.cuda_graph records a batch in one part, got fit.accumulation = {self.accumulation}; set one of them "
            "to its default",
        )
