"""The files that a run writes while it trains."""

from collections.abc import Mapping
from pathlib import Path

from PIL.Image import Image

from aimamba.files import write_atomically
from aimamba.train.tensorboard import TensorBoard
from aimamba.train.tracking import MetricsFile


class Records:
    """``metrics.jsonl`` and ``sheets/`` of a run, and optionally TensorBoard's event files."""

    def __init__(self, out: Path, *, step: int, tensorboard: bool) -> None:
        """Open the files of a run. Metrics that it will write again are removed.

        Args:
            out: Folder of the run.
            step: Number of steps already taken.
            tensorboard: Whether to write TensorBoard's event files.
        """
        self._metrics = MetricsFile(out / "metrics.jsonl", step=step)
        self._sheets = out / "sheets"
        self._tensorboard = TensorBoard(out, step=step) if tensorboard else None

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write metrics of a split, "train" or "held-out"."""
        self._metrics.write(step, split, values)
        if self._tensorboard is not None:
            self._tensorboard.write(step, split, values)

    def sheet(self, step: int, image: Image) -> None:
        """Save a sample sheet."""
        self._sheets.mkdir(exist_ok=True)
        write_atomically(self._sheets / f"step-{step:06d}.png", lambda draft: image.save(draft, format="PNG"))
        if self._tensorboard is not None:
            self._tensorboard.sheet(step, image)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: object) -> None:
        self._metrics.__exit__(*error)
        if self._tensorboard is not None:
            self._tensorboard.close()


class NoRecords(Records):
    """The records of a process that writes none, because another one does."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write nothing."""

    def sheet(self, step: int, image: Image) -> None:
        """Save nothing."""

    def __exit__(self, *error: object) -> None:
        pass
