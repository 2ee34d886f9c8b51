"""Time until the first token can be generated: importing, and loading weights."""

import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement


def measure_startup(measurement: Measurement) -> dict[str, Any]:
    """Time an import or loading weights, in this new process.

    The subject ``import`` is ``import aimamba``, which must not import torch. The subject ``load`` is
    ``AiM.from_pretrained`` on a folder that was just written, so that the system still caches the file; importing
    torch is reported separately.

    Returns:
        ``seconds``, and ``torch_loaded`` or ``file_bytes`` and ``import_torch_seconds``.
    """
    if measurement.subject == "import":
        start = time.perf_counter()
        importlib.import_module("aimamba")
        return {"seconds": time.perf_counter() - start, "torch_loaded": "torch" in sys.modules}
    start = time.perf_counter()
    importlib.import_module("torch")
    torch_seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        return {**_load(Path(folder), measurement), "import_torch_seconds": torch_seconds}


def _load(folder: Path, measurement: Measurement) -> dict[str, Any]:
    """Write random weights, then load them."""
    from aimamba.models import AiM  # noqa: PLC0415 - imports torch, which is timed above
    from benchmarks.ours import TORCH_DTYPES, aim_config  # noqa: PLC0415 - the same

    AiM(aim_config(measurement)).save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    start = time.perf_counter()
    AiM.from_pretrained(folder, device=measurement.device, dtype=TORCH_DTYPES[measurement.dtype])
    return {"seconds": time.perf_counter() - start, "file_bytes": size}
