"""Optional TensorBoard output: the metrics and sample sheets of a run."""

import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aimamba.errors import ConfigError
from aimamba.files import naming
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
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415

        folder = out / _FOLDER
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        folder.mkdir(exist_ok=True)
        # Not torch's SummaryWriter: a full disk ends its thread with a traceback.
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._records = RecordWriter(self._path.open("wb"))
        self._add(Event(file_version="brain.Event:2"))
        # Beginning at step 0 makes an open TensorBoard forget the points of the old files.
        self._add(Event(session_log=SessionLog(status=SessionLog.START), step=0))
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
        from torch.utils.tensorboard.summary import scalar  # noqa: PLC0415

        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._summary(scalar(f"{split}/{name}", value), step, when)

    def sheet(self, step: int, image: Image.Image) -> None:
        """Add a sample sheet."""
        from torch.utils.tensorboard.summary import image as of_pixels  # noqa: PLC0415

        self._summary(of_pixels("sheet", np.asarray(image.convert("RGB")), dataformats="HWC"), step)

    def close(self) -> None:
        """Close the event file."""
        with naming(self._path):
            self._records.close()

    def _summary(self, summary: Any, step: int, when: float | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415

        self._add(Event(summary=summary, step=step), when)

    def _add(self, event: Any, when: float | None = None) -> None:
        event.wall_time = time.time() if when is None else when
        with naming(self._path):
            self._records.write(event.SerializeToString())
            self._records.flush()
