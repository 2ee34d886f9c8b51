"""``sums.json`` in a folder of codes: the SHA-256 of every file, so that a flipped bit or a swapped shard is found."""

import json
from collections.abc import Mapping
from pathlib import Path

from aimamba.checkpoints.sums import SUMS_KEY, sum_of_file, sum_of_values
from aimamba.documents import read_json
from aimamba.errors import DataError
from aimamba.files import write_atomically

SUMS_FILE = "sums.json"
_LARGEST = 1 << 26  # bytes


def read_sums(folder: Path) -> dict[str, str] | None:
    """Return the sums of the files in a folder, by name; None where an earlier version wrote none.

    Raises:
        DataError: They are damaged.
    """
    path = folder / SUMS_FILE
    if not path.exists():
        return None
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ValueError
        values = read_json(path)
        if values[SUMS_KEY] != sum_of_values(values):
            raise ValueError
        sums = values["files"]
        return {name: sums[name] + "" for name in sums}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: damaged; remove it to go on without the checksums of the codes, or encode again"
        ) from error


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the sums of the files in a folder."""
    values = {"files": dict(sorted(sums.items()))}
    text = json.dumps({**values, SUMS_KEY: sum_of_values(values)}, indent=1) + "\n"
    write_atomically(folder / SUMS_FILE, lambda draft: draft.write_text(text, encoding="utf-8"))


def check_sum(path: Path, sums: Mapping[str, str] | None) -> None:
    """Read a file and compare it with its sum.

    Raises:
        DataError: It is another, or the file has none.
    """
    if sums is not None and (actual := sum_of_file(path)) != (expected := sums.get(path.name)):
        wanted = "none" if expected is None else f"{expected[:12]}..."
        raise DataError(
            f"{path}: damaged, or not what was encoded: its SHA-256 is {actual[:12]}..., expected {wanted}; run the "
            "same 'aimamba encode' again to replace it"
        )
