"""Recipe files: packaged TOML files by name, the user's own by path."""

import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from aimamba.documents import parse_toml
from aimamba.errors import ConfigError, suggest
from aimamba.files import expand_home
from aimamba.train.toml import read_toml


class RecipeFiles(NamedTuple):
    """The packaged TOML files of one kind.

    Attributes:
        kind: What one of them is called in messages: "recipe".
        plural: What several of them are called: "recipes".
        folder: Their folder in the package, such as ``recipes/studies``.
    """

    kind: str
    plural: str
    folder: str

    def names(self) -> list[str]:
        """Return the names of the packaged files, sorted."""
        files = (Path(entry.name) for entry in resources.files("aimamba").joinpath(self.folder).iterdir())
        return sorted(file.stem for file in files if file.suffix == ".toml")

    def read(self, name_or_path: str) -> dict[str, Any]:
        """Read a packaged file or one of the user's own.

        Args:
            name_or_path: Name of a packaged file, or path of a TOML file (with a slash or ``.toml`` in it).

        Raises:
            ConfigError: The file does not exist or is not valid TOML.
        """
        if _is_path(name_or_path):
            return read_toml(expand_home(name_or_path))
        return parse_toml(self._packaged(name_or_path))

    def text(self, name_or_path: str) -> str:
        """Return the text of a file that ``read`` reads, with its comments; errors as there."""
        if _is_path(name_or_path):
            path = expand_home(name_or_path)
            read_toml(path)
            return path.read_text(encoding="utf-8")
        return self._packaged(name_or_path)

    def _packaged(self, name: str) -> str:
        names = self.names()
        if name not in names:
            raise ConfigError(
                f"unknown {self.kind} {name!r}{suggest(name, names)}; "
                f"known {self.plural}: {', '.join(names)}; or give the path of a .toml file"
            )
        packaged = resources.files("aimamba").joinpath(self.folder, f"{name}.toml")
        return packaged.read_text(encoding="utf-8")


def _is_path(name_or_path: str) -> bool:
    return name_or_path.endswith(".toml") or os.sep in name_or_path or "/" in name_or_path
