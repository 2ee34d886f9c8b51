"""Arrays in the cache folder, each with a checksum: what is damaged, foreign or not finite counts as absent."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from aimamba import __version__
from aimamba.data.cache import store_array
from aimamba.files import cache_folder, write_atomically

_ABOUT = "provenance.json"


class StoredArrays:
    """Arrays that are kept under everything they depend on.

    Attributes:
        folder: Where they are.
    """

    def __init__(self, kind: str, provenance: Mapping[str, Any]) -> None:
        """Choose the folder; nothing is read or written yet.

        Args:
            kind: Folder inside the cache, such as ``features``.
            provenance: Everything that the arrays depend on, as JSON values.
        """
        self._provenance = json.loads(json.dumps(provenance))
        text = json.dumps(self._provenance, sort_keys=True)
        self.folder = cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()[:24]

    def store(self, arrays: Mapping[str, np.ndarray], **notes: float | None) -> None:
        """Write arrays and numbers. A cache that cannot be written is ignored: the values are not lost."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, array in arrays.items():
                store_array(self.folder / f"{name}.npy", array)
            about = {
                "aimamba": __version__,
                **self._provenance,
                **notes,
                "sha256": {name: _digest(self.folder / f"{name}.npy") for name in arrays},
            }
            content = json.dumps(about, indent=2) + "\n"  # last: now it is complete
            write_atomically(self.folder / _ABOUT, lambda path: path.write_text(content, encoding="utf-8"))

    def load(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Read arrays and notes.

        Args:
            shapes: The shape that each array must have.

        Returns:
            The arrays and everything that was noted, or None if an array is absent, is not the one that was written,
            has another shape or holds NaN or infinity.
        """
        try:
            about = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
            if {name: about[name] for name in self._provenance} != self._provenance:
                return None
            arrays = {}
            for name, shape in shapes.items():
                path = self.folder / f"{name}.npy"
                if not path.is_file() or about["sha256"][name] != _digest(path):
                    return None
                array = np.load(path, allow_pickle=False)
                if array.shape != shape or not np.isfinite(array).all():
                    return None
                arrays[name] = array
        except Exception:  # whatever is wrong with the files, their content is computed again
            return None
        return arrays, about


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
