"""What the processes of a test do: train a tiny tokenizer or generator, and misbehave if asked to."""

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_adversary import ALL_ON, SHAPE, Blots

from aimamba.data.codes import CodeSet
from aimamba.distributed import Team, find_place
from aimamba.models import AiM, AiMConfig, VQModel
from aimamba.train.fit import Result, fit
from aimamba.train.generator import GeneratorTask
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.parallel.fit import fit_many
from aimamba.train.parallel.layout import Layout
from aimamba.train.settings import FitConfig
from aimamba.train.tokenizer import TokenizerTask, TokenizerTaskConfig
from aimamba.train.tuning import choose_trained

Act = Callable[[int, int], None]
"""Called with the rank and the number of each step, from 1, before its loss."""

assert fit_many  # imported here once, and not in every process
CPU = torch.device("cpu")
TIMEOUT = 5.0
ADVERSARY = {**ALL_ON, "adversarial_adaptive": True, "perceptual_weight": 0.0}
FIT = {
    "steps": 20,
    "batch_size": 8,
    "lr": 1e-3,
    "warmup_steps": 2,
    "ema_decay": 0.9,
    "log_every": 1,
    "evaluate_every": 10,
    "checkpoint_every": 10,
}


class Generator(GeneratorTask):
    def __init__(self, act: Act | None = None, **options: Any) -> None:
        shape = {"width": 32, "num_blocks": 2, "adaln": "group", "adaln_groups": 2, "state_size": 16, "head_width": 16}
        model = AiM(AiMConfig(vocab_size=16, num_tokens=16, num_classes=3, **shape))
        model.init_weights(torch.Generator().manual_seed(0))
        rng = np.random.default_rng(0)
        train, held_out = (
            CodeSet(rng.integers(0, 16, (n, 2, 16)).astype(np.uint16), rng.integers(0, 3, n)) for n in (40, 9)
        )
        config = GeneratorTaskConfig(**{"tokenizer": "none", "token_dropout": 0.1, **options})
        tokenizer = VQModel(SHAPE)
        tokenizer.init_weights(torch.Generator().manual_seed(0))
        super().__init__(model, tokenizer, train, held_out, ("a", "b", "c"), config, seed=1)
        choose_trained(model, config)
        self.act, self.steps = act, 0

    def sheet(self, model):
        from PIL import Image

        assert not isinstance(model.word_embedding.weight, torch.distributed.tensor.DTensor)
        return Image.new("RGB", (2, 2))

    def save(self, model, folder: Path) -> None:
        model.save_pretrained(folder / "generator")

    def batches(self, start, batch_size, *, stride=None):
        for number, batch in enumerate(super().batches(start, batch_size, stride=stride), 1):
            if self.act is hang_reading:
                hang(int(os.environ.get("RANK", "0")), number)
            yield batch

    def loss(self, model, batch, rng, step=0):
        if self.act is not None and self.act is not hang_reading:
            self.act(int(os.environ.get("RANK", "0")), step + 1)
        loss, report = super().loss(model, batch, rng, step)
        spoilt = self.act is poison and os.environ["RANK"] == "1" and (step == 2 or step >= 5)
        return loss * math.nan if spoilt else loss, report


class Tokenizer(TokenizerTask):
    def __init__(self, act: Act | None = None, quantizer: str = "learned", **options: Any) -> None:
        model = VQModel(replace(SHAPE, quantizer=quantizer))
        model.init_weights(torch.Generator().manual_seed(0))
        super().__init__(model, Blots(24), Blots(6, seed=1), TokenizerTaskConfig(**{**ADVERSARY, **options}), seed=5)


STAGES = {"generator": Generator, "tokenizer": Tokenizer}


def settings(**changes: Any) -> FitConfig:
    return FitConfig(**{**FIT, **changes})


def train(
    _rank: int, stage: str, out: Path, layout: tuple[int, int], changes: dict[str, Any], act: Act | None = None,
    options: dict[str, Any] | None = None,
) -> Result:  # fmt: skip
    place = find_place()
    assert place is not None
    task = STAGES[stage](act, **(options or {}))
    advice = f"the same command goes on from the last checkpoint in {out}"
    with Team(place, CPU, timeout=TIMEOUT, advice=advice) as team:
        return fit(task, settings(**changes), out, team=team, layout=Layout(*layout))


def train_quantizers(_rank: int, out: Path, changes: dict[str, Any], options: dict[str, Any]) -> None:
    """Train a tokenizer with each of two quantisers, one after the other."""
    place = find_place()
    assert place is not None
    with Team(place, CPU, timeout=60.0, advice="") as team:
        for kind in ("ema", "lfq"):
            task = Tokenizer(quantizer=kind, **options)
            fit(task, settings(**changes), out / kind, team=team, layout=Layout(1, 2))


def train_compiled(rank: int, *arguments: Any) -> Result:
    """Train with blocks that are compiled, by a compiler that only traces them."""
    compile_ = torch.nn.Module.compile
    torch.nn.Module.compile = lambda module, **options: compile_(module, backend="eager", **options)
    return train(rank, *arguments)


def alone(stage: str, out: Path, changes: dict[str, Any], options: dict[str, Any] | None = None) -> Result:
    return fit(STAGES[stage](**(options or {})), settings(**changes), out)


def die(rank: int, step: int) -> None:
    if rank == 1 and step == 14:
        os.kill(os.getpid(), signal.SIGKILL)


def hang(rank: int, step: int) -> None:
    if rank == 1 and step == 14:
        time.sleep(600)


def hang_reading(rank: int, step: int) -> None:
    """Hang while examples are read."""


def freeze(rank: int, step: int) -> None:
    if rank == 1 and step == 14:
        os.kill(os.getpid(), signal.SIGSTOP)


def terminate(rank: int, step: int) -> None:
    if rank == 1 and step == 14:
        for _ in range(2):  # Slurm and torchrun both send it
            os.kill(os.getpid(), signal.SIGTERM)


def poison(rank: int, step: int) -> None:
    """Make the loss of one process not finite, in steps 3 and 6 to 10."""


def spoil(rank: int, step: int) -> None:
    if rank == 1 and step == 14:
        raise RuntimeError("a bug")
