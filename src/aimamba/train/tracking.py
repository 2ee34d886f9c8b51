"""What a run tells: means kept on the device, ``metrics.jsonl`` for programs, a progress bar for people."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from aimamba.files import write_atomically


class RunningMeans:
    """Means of named numbers, added up where the tensors are: only ``take`` waits for the device."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Count in one observation of each of ``values``, numbers or scalar tensors."""
        for name, value in values.items():
            number = value.detach().float() if isinstance(value, Tensor) else value
            self._totals[name] = self._totals.get(name, 0.0) + number
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Give the mean of each name since the last call, and begin anew."""
        means = {name: float(total) / self._counts[name] for name, total in self._totals.items()}
        self._totals, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Give what ``load_state_dict`` needs to continue exactly."""
        return {"totals": dict(self._totals), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, whose tensors may be on another device than those to come."""
        self._totals = {name: float(total) for name, total in state["totals"].items()}
        self._counts = dict(state["counts"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a ``metrics.jsonl``; what is not such a line, say one cut short, is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"step", "split"} <= line.keys():
            lines.append(line)
    return lines


class MetricsFile:
    """``metrics.jsonl``, a JSON object a line, each with ``step`` and ``split`` ("train" or "held-out").

    Opened by a run that continues after ``step`` steps, it first loses what that run will write again: all later lines,
    and what was measured on held-out examples after just these steps, since the run looks before it goes on.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        kept = [line for line in read_metrics(path) if (line["step"], line["split"] != "train") <= (step, False)]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append a line at once; JSON knows no infinity, so a number that is not finite becomes ``null``."""
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
        self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Progress:
    """Loss, images a second and time left: a bar on a terminal, elsewhere a plain line every few seconds."""

    def __init__(self, *, steps: int, start: int, batch_size: int, interval: float = 10.0) -> None:
        """Begin to show a run on standard error.

        Args:
            steps: How many there will be in all.
            start: How many were taken in earlier sittings.
            batch_size: Images in a step.
            interval: Seconds between plain lines.
        """
        self._stream = sys.stderr
        self._steps, self._step, self._batch_size = steps, start, batch_size
        self._loss, self._seconds = math.nan, math.nan
        self._interval, self._told = interval, time.monotonic()
        self._bar = None
        if self._stream.isatty():
            layout = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(total=steps, initial=start, file=self._stream, bar_format=layout, dynamic_ncols=True)

    def advance(self, loss: float, seconds: float) -> None:
        """Show that a step took ``seconds`` and had ``loss``, both smoothed over the last ten steps or so."""
        self._step += 1
        self._loss = _smooth(self._loss, loss)
        self._seconds = _smooth(self._seconds, seconds)
        rate = self._batch_size / self._seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {self._loss:.4g}, {rate:.3g} images/s", refresh=False)
            self._bar.update()
        elif time.monotonic() - self._told >= self._interval or self._step == self._steps:
            self._told = time.monotonic()
            left = tqdm.format_interval((self._steps - self._step) * self._seconds)
            self.say(f"step {self._step}/{self._steps}: loss {self._loss:.4g}, {rate:.3g} images/s, {left} left")

    def say(self, message: str) -> None:
        """Write a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _smooth(mean: float, value: float) -> float:
    if not math.isfinite(value):
        return mean
    return value if math.isnan(mean) else 0.9 * mean + 0.1 * value
