"""Inception's weights: a user's file or the published file, downloaded once; both are checked by SHA-256."""

import hashlib
import urllib.request
from pathlib import Path
from urllib.error import URLError

from tqdm import tqdm

from aimamba.errors import CheckpointError
from aimamba.files import cache_folder, expand_home, write_atomically

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
BYTES = 95_628_359
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_FILE = f"{URL}, {BYTES:,} bytes, SHA-256 {SHA256}"
_PIECE = 1 << 20


def inception_weights(source: str = "inception") -> tuple[Path, str]:
    """Return the path of the weights; download them if ``source`` is ``"inception"`` and they are not cached yet.

    Args:
        source: ``"inception"``, or the path of the file.

    Returns:
        The path and the SHA-256 of the file.

    Raises:
        CheckpointError: The file does not exist, cannot be downloaded, or is not the published one.
    """
    path = cache_folder() / "weights" / URL.rpartition("/")[2] if source == "inception" else expand_home(source)
    if not path.is_file():
        if source != "inception":
            raise CheckpointError(
                f"--features {source}: no such file; give lite0, inception or the file of Inception's weights ({_FILE})"
            )
        _download(path)
    digest = _digest(path)
    if digest != SHA256:
        raise CheckpointError(f"{path}: not the published Inception of 2015-12-05 (SHA-256 {digest}): fetch {_FILE}")
    return path, digest


def _download(path: Path) -> None:
    def write(draft: Path) -> None:
        # The address is a constant, and the file's SHA-256 is checked.
        with urllib.request.urlopen(URL, timeout=60) as answer, draft.open("wb") as file:  # nosec B310
            total = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=total, desc="Inception's weights", unit="B", unit_scale=True) as bar:
                while piece := answer.read(_PIECE):
                    file.write(piece)
                    bar.update(len(piece))

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(path, write)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise CheckpointError(
            f"Inception's weights cannot be downloaded ({getattr(error, 'reason', error)}): fetch {_FILE} elsewhere "
            "and give the file with --features, or use --features lite0"
        ) from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
