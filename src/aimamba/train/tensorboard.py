"""Optional TensorBoard output: the metrics and sample sheets of a run."""

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
    """Check that TensorBoard is installed, which PyTorch needs to write event files.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed; pip install 'aimamba[tensorboard]', or leave out --tensorboard"
        ) from error


class TensorBoard:
    """Event files in the folder ``tensorboard/`` of a run: scalars such as ``train/loss``, and sheets as images.

    They are written again from ``metrics.jsonl`` and ``sheets/`` whenever a run begins or continues. So a resumed run
    has no point twice, and a run that turns TensorBoard on later still shows its whole history.
    """

    def __init__(self, out: Path, *, step: int) -> None:
        """Write the history of a run and keep the event file open.

        Args:
            out: Folder of the run.
            step: The next step of the run, counted from 0; sheets from this step on are left out.
        """
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        folder = out / _FOLDER
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # Purging from step 0 makes an open TensorBoard forget the points of the old files.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        lines = read_metrics(out / "metrics.jsonl")
        start, seconds = time.time() - max((line.get("seconds") or 0.0 for line in lines), default=0.0), 0.0
        for line in lines:
            seconds = line.get("seconds") or seconds
            values = {name: value for name, value in line.items() if name not in ("step", "split")}
            self.write(line["step"], line["split"], values, when=start + seconds)
        for path in sorted((out / "sheets").glob("step-*.png")):
            if (rendered_at := int(path.stem.partition("-")[2])) < step:  # the run renders that of ``step`` again
                with Image.open(path) as image:
                    self.sheet(rendered_at, image)

    def write(self, step: int, split: str, values: Mapping[str, float | None], *, when: float | None = None) -> None:
        """Add a point to each curve. NaN, infinity and None leave a gap.

        Args:
            step: Number of steps taken.
            split: "train" or "held-out".
            values: Metrics by name.
            when: Time of the point in seconds since the epoch; by default now.
        """
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(f"{split}/{name}", value, step, walltime=when)
        self._writer.flush()

    def sheet(self, step: int, image: Image.Image) -> None:
        """Add a sample sheet."""
        self._writer.add_image("sheet", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
