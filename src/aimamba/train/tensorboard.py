"""A run's metrics and sample sheets as TensorBoard shows them, for who asks for it."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from aimamba.errors import ConfigError
from aimamba.train.tracking import read_metrics

_FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Check that TensorBoard's package is there; PyTorch writes its files with it.

    Raises:
        ConfigError: It is not.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed; pip install 'aimamba[tensorboard]', or leave out --tensorboard"
        ) from error


class TensorBoard:
    """Event files in ``tensorboard/`` of a run: scalars as ``train/loss`` or ``held-out/psnr``, sheets as images.

    They are written anew from ``metrics.jsonl`` and ``sheets/`` whenever a run begins or goes on. So no point is there
    twice after a resume, and a run that asks for TensorBoard late has its whole history there.
    """

    def __init__(self, out: Path, *, step: int) -> None:
        """Write what the run in ``out`` has told before it goes on with step ``step``, counted from 0; await more."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        folder = out / _FOLDER
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # A purge at step 0 makes a TensorBoard that is open forget what it read from the old files.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        lines = read_metrics(out / "metrics.jsonl")
        began, at = time.time() - max((line.get("seconds") or 0.0 for line in lines), default=0.0), 0.0
        for line in lines:
            at = line.get("seconds") or at
            values = {name: value for name, value in line.items() if name not in ("step", "split")}
            self.write(line["step"], line["split"], values, when=began + at)
        for path in sorted((out / "sheets").glob("step-*.png")):
            if (drawn := int(path.stem.partition("-")[2])) < step:  # that of this very step is drawn again
                with Image.open(path) as image:
                    self.sheet(drawn, image)

    def write(self, step: int, split: str, values: Mapping[str, float | None], *, when: float | None = None) -> None:
        """Add a point to each curve; a number that is not finite or ``null`` leaves a gap."""
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(f"{split}/{name}", value, step, walltime=when)
        self._writer.flush()

    def sheet(self, step: int, image: Image.Image) -> None:
        """Add a sample sheet."""
        self._writer.add_image("sheet", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
