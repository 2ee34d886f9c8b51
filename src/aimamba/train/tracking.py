"""Track a run: means of metrics on the device, ``metrics.jsonl``, and a progress bar."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from aimamba.documents import parse_json
from aimamba.files import naming, write_atomically


class RunningMeans:
    """Means of named numbers. They are added up on the device, so only ``take`` waits for it."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Add one observation of each name: a number or a scalar tensor."""
        for name, value in values.items():
            number = value.detach().float() if isinstance(value, Tensor) else value
            self._totals[name] = self._totals.get(name, 0.0) + number
            self._counts[name] = self._counts.get(name, 0) + 1

    def count(self, name: str) -> None:
        """Count something that happens rarely; its number takes the place of a mean."""
        self.add({name: 1.0})
        self._counts[name] = 1

    def take(self) -> dict[str, float]:
        """Return the mean of each name since the last call, and start again."""
        totals = {name: total for name, total in self._totals.items() if not isinstance(total, Tensor)}
        tensors = {name: total for name, total in self._totals.items() if isinstance(total, Tensor)}
        if tensors:
            device = next(iter(tensors.values())).device
            read = torch.stack([total.to(device) for total in tensors.values()]).tolist()  # waits for it, once
            totals |= dict(zip(tensors, read, strict=True))
        means = {name: totals[name] / count for name, count in self._counts.items()}
        self._totals, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the state for ``load_state_dict``."""
        return {"totals": dict(self._totals), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned; later tensors may be on another device."""
        self._totals = {name: float(total) for name, total in state["totals"].items()}
        self._counts = dict(state["counts"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a ``metrics.jsonl``. Lines that are incomplete or hold something else are skipped."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("split"), str):
            lines.append(line)
    return lines


class MetricsFile:
    """``metrics.jsonl``: one JSON object per line, each with ``step`` and ``split`` ("train" or "held-out").

    When a run continues after ``step`` steps, opening the file removes the lines that the run will write again: all
    later ones, and the held-out metrics of ``step`` itself, because the run evaluates before it takes the next step.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        kept = [line for line in read_metrics(path) if (line["step"], line["split"] != "train") <= (step, False)]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append a line and flush it; a held-out one is on disk afterwards, with all before it.

        NaN and infinity become ``null``, because JSON has neither.
        """
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with naming(self._path):
            self._file.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
            self._file.flush()
            if split != "train":
                os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self._path):
            self._file.close()


class Progress:
    """Show loss, images/s and time left: a progress bar on a terminal, otherwise a line every few seconds."""

    def __init__(self, *, steps: int, start: int, batch_size: int, interval: float = 10.0, quiet: bool = False) -> None:
        """Show a run on standard error.

        Args:
            steps: Total number of steps.
            start: Number of steps already taken.
            batch_size: Images per step.
            interval: Seconds between lines where there is no terminal.
            quiet: Whether to print warnings only.
        """
        self._quiet = quiet
        self._stream = sys.stderr
        self._steps, self._step, self._batch_size = steps, start, batch_size
        self._loss, self._seconds, self._taken = math.nan, math.nan, 0
        self._interval, self._last_line = interval, time.monotonic()
        self._bar = None
        if self._stream.isatty() and not quiet:
            layout = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(total=steps, initial=start, file=self._stream, bar_format=layout, dynamic_ncols=True)

    def advance(self, loss: float, seconds: float) -> None:
        """Show the next step, with loss and time smoothed over about the last ten steps."""
        self._step += 1
        self._loss = _smooth(self._loss, loss)
        self._taken += 1
        if self._taken == 2:  # the first step compiled kernels, and says nothing about the others
            self._seconds = math.nan
        self._seconds = _smooth(self._seconds, seconds)
        rate = self._batch_size / self._seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {self._loss:.4g}, {rate:.3g} images/s", refresh=False)
            self._bar.update()
        elif self._quiet:
            pass
        elif time.monotonic() - self._last_line >= self._interval or self._step == self._steps:
            self._last_line = time.monotonic()
            left = tqdm.format_interval((self._steps - self._step) * self._seconds)
            self.log(f"step {self._step}/{self._steps}: loss {self._loss:.4g}, {rate:.3g} images/s, {left} left")

    def warn(self, message: str) -> None:
        """Print a line that is worth reading where the others are not wanted."""
        self._print(message)

    def log(self, message: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if not self._quiet:
            self._print(message)

    def _print(self, message: str) -> None:
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class NoProgress(Progress):
    """The progress of a process that prints nothing, because another one does."""

    def __init__(self, *, steps: int, start: int, batch_size: int) -> None:
        """Take the numbers of ``Progress``."""
        super().__init__(steps=steps, start=start, batch_size=batch_size, quiet=True)

    def _print(self, message: str) -> None:
        pass


def _smooth(mean: float, value: float) -> float:
    if not math.isfinite(value):
        return mean
    return value if math.isnan(mean) else 0.9 * mean + 0.1 * value
