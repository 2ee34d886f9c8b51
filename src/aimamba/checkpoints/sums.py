"""SHA-256 sums of a saved model's files: a bit that flips on disk or on the way is noticed when the file is read.

``config.json`` holds the sum of the weights beside it; ``pipeline.json`` holds its own and those of its parts'
configs, so that it stands for all of them. Folders that were saved without sums load as before.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aimamba.errors import CheckpointError

SUMS_KEY = "sha256"
LARGEST_VERIFIED = 1 << 30  # bytes; larger weights stay mapped into memory, and are verified on demand


def sum_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sum_of_values(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values, without the sums among them, as 64 hex digits."""
    plain = {key: value for key, value in values.items() if key != SUMS_KEY}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def take_sums(values: dict[str, Any], names: set[str], path: Path) -> dict[str, str] | None:
    """Remove the sums from the content of a file and return them; ``None`` if it has none.

    Args:
        values: The file's content.
        names: The files whose sums must be there, and no others.
        path: The file, for the message.

    Raises:
        CheckpointError: They are not sums of these files.
    """
    if SUMS_KEY not in values:
        return None
    sums = values.pop(SUMS_KEY)
    if not isinstance(sums, dict) or sums.keys() != names or not all(isinstance(item, str) for item in sums.values()):
        raise CheckpointError(f"{path}: expected {SUMS_KEY!r} to hold the sums of {', '.join(sorted(names))}")
    return sums


def check_sum(path: Path, actual: str, expected: str, holder: Path) -> None:
    """Check a sum.

    Raises:
        CheckpointError: It differs: the file is damaged, or is not the one that ``holder`` was saved with.
    """
    if actual != expected:
        raise CheckpointError(
            f"{path}: damaged, or not what was saved: its SHA-256 is {actual[:12]}..., expected {expected[:12]}...; "
            f"save or fetch it again, or remove {SUMS_KEY!r} from {holder} if you changed it on purpose"
        )
