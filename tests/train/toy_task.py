"""A task small enough to watch: a regression whose inputs are dropped at random.

As a program, ``toy_task.py OUT [--die-in-step N | --die-in-write N]``, it trains and may kill itself, as kill -9 would.
"""

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from aimamba.train.fit import FitConfig
from aimamba.train.task import Amount, Example, Objective

SETTINGS = {
    "steps": 6,
    "batch_size": 4,
    "lr": 0.05,
    "warmup_steps": 2,
    "clip_norm": 0.5,
    "ema_decay": 0.9,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "sheet_every": 3,
    "log_every": 4,
}


class ToyBatch(NamedTuple):
    x: Tensor
    y: Tensor


class ToyTask:
    """``before_step`` is called with the number of each step, from 1, and gives a factor for its loss."""

    def __init__(self, before_step: Callable[[int], float] = lambda step: 1.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.seen = nn.BatchNorm1d(4, affine=False)
        self.before_step = before_step
        self.step = 0
        self.positions: list[int] = []

    def amount(self) -> Amount:
        return Amount(100, 50, 4, "numbers")

    def batches(self, start: int, batch_size: int) -> Iterator[ToyBatch]:
        while True:
            self.positions.append(start)
            rows = [torch.randn(4, generator=torch.Generator().manual_seed(start + i)) for i in range(batch_size)]
            x = torch.stack(rows)
            yield ToyBatch(x, x.sum(dim=1, keepdim=True))
            start += batch_size

    def examples(self, start: int, count: int) -> list[Example]:
        return [Example(position, 0, "row") for position in range(start, start + count)]

    def loss(self, model, batch: ToyBatch, rng: torch.Generator, step: int):
        self.step += 1
        factor = self.before_step(self.step)
        kept = (torch.rand(batch.x.shape, generator=rng) < 0.8).float()
        error = (model(self.seen(batch.x) * kept) - batch.y).square().mean()
        return error * factor, {"kept": kept.mean(), "one": 1.0}

    def end_step(self, skip: Tensor) -> None:
        pass

    def companions(self) -> dict[str, nn.Module]:
        return {"seen": self.seen}

    def basis(self) -> dict[str, str]:
        return {"table of sums": "ab" * 32}

    def auxiliary(self) -> None:
        return None

    def no_weight_decay(self, name: str) -> bool:
        return name == "3.weight"

    def evaluate(self, model) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"loss": float((model(torch.eye(4)) - 1).square().mean())}

    def objective(self) -> Objective:
        return Objective("loss")

    def sheet(self, model) -> Image.Image:
        return Image.new("RGB", (2, 2))

    def save(self, model, folder: Path) -> None:
        torch.save(model.state_dict(), folder / "weights.pt")


def settings(**changes) -> FitConfig:
    return FitConfig(**{**SETTINGS, **changes})


if __name__ == "__main__":
    from aimamba.train.fit import fit

    torch.set_num_threads(1)  # as the tests do: the order of sums depends on it
    out, how, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def die(*_: object) -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    def die_in_step(step: int) -> float:
        return die() if step == number else 1.0

    if how == "--die-in-write":
        fsync, written = os.fsync, []  # recipe.toml and metrics.jsonl are the first two, checkpoints follow

        def count(handle: int) -> None:
            if stat.S_ISREG(os.fstat(handle).st_mode):  # not a folder
                written.append(handle)
            if len(written) == number:
                os.ftruncate(handle, 100)
                die()
            fsync(handle)

        os.fsync = count
    fit(ToyTask(die_in_step if how == "--die-in-step" else lambda step: 1.0), settings(), out)
