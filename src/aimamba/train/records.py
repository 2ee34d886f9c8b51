"""What a run writes down as it goes."""

from collections.abc import Mapping
from pathlib import Path

from PIL.Image import Image

from aimamba.train.tensorboard import TensorBoard
from aimamba.train.tracking import MetricsFile


class Records:
    """``metrics.jsonl`` and ``sheets/`` of a run, and TensorBoard's files where they are asked for."""

    def __init__(self, out: Path, *, step: int, tensorboard: bool) -> None:
        """Open those of the run in ``out`` that goes on after ``step`` steps; what it will write again is dropped."""
        self._metrics = MetricsFile(out / "metrics.jsonl", step=step)
        self._sheets = out / "sheets"
        self._tensorboard = TensorBoard(out, step=step) if tensorboard else None

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Note numbers of a split, "train" or "held-out"."""
        self._metrics.write(step, split, values)
        if self._tensorboard is not None:
            self._tensorboard.write(step, split, values)

    def sheet(self, step: int, image: Image) -> None:
        """Keep a sample sheet."""
        self._sheets.mkdir(exist_ok=True)
        image.save(self._sheets / f"step-{step:06d}.png")
        if self._tensorboard is not None:
            self._tensorboard.sheet(step, image)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: object) -> None:
        self._metrics.__exit__(*error)
        if self._tensorboard is not None:
            self._tensorboard.close()
