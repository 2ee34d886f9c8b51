"""Files and folders that are whole or absent, and places on this machine: the home and the cache folder."""

import contextlib
import errno
import functools
import os
import re
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_PROBE = 1 << 20  # bytes that are written to find out whether there is room
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
"""What the system says where there is no room: of a disk, or of a user's quota."""

LONGEST_NAME = 255 - 34
"""Bytes of the name of a file that is written atomically: its draft's has a dot at either end and 32 digits more."""

_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")  # see write_atomically
_SYSTEMS_NUMBER = re.compile(r"\(os error (\d+)\)")  # as Rust's libraries end their messages


def write_atomically(
    path: Path, write: Callable[[Path], object], *, draft: str | None = None, size: int | None = None
) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it, also after a power cut.

    The content goes into a draft beside ``path``, which then replaces it. The draft is on the disk before that, and the
    folder's entry is when this returns. The file's mode follows the umask.

    Args:
        path: The file to write.
        write: Writes the content to the path it is called with.
        draft: Name of the draft. The default is unique, so several processes can write at once. With a fixed name, a
            process that is killed repeatedly leaves at most one draft behind.
        size: Bytes that will be written, where that is known; a full disk is reported with it.

    Raises:
        OSError: The disk is full, or writing is not permitted, however ``write`` words it. Of a full disk the message
            says how much is needed and how much is free.
    """
    temporary = path.with_name(draft or f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process; of a link that someone planted, the link alone
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # safetensors makes its files for the owner alone
            temporary.chmod(mode)
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        if (fault := _fault_of_disk(error, temporary, path, size)) is None:
            raise
        raise fault from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def named(error: OSError, draft: Path, path: Path, size: int | None = None) -> OSError:
    """Return an error of the system that names the file; of a full disk with the room that is needed and free.

    Args:
        error: The error.
        draft: The file or folder that was written to; the same as ``path`` where it stays.
        path: What it was to become.
        size: Bytes that are needed, where that is known.
    """
    text, name = error.strerror, error.filename
    if error.errno is not None and error.errno in FULL and name in (None, str(draft)):
        written = _size(draft)
        needed = f"more than {amount(written)}" if size is None else amount(max(size, written))
        text = f"{os.strerror(error.errno)} ({needed} needed"
        with contextlib.suppress(OSError):
            room = shutil.disk_usage(path.parent).free + (written if draft != path else 0)  # the draft is removed
            text += f", {amount(room)} free"
        text += ")"
    return OSError(error.errno, text, str(path) if name in (None, str(draft)) else name)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of writing in the block name the file, and of a full disk how much is free.

    For files that grow line by line and cannot be written atomically.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise named(error, path, path) from error


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes have left in a folder to which no other process is writing."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _DRAFT.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def write_folder_atomically(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a new folder that is either whole or absent, also after a kill or a power cut.

    Args:
        folder: The folder; it is missing or empty. Folders above it are made if needed.
        write: Writes the content to the folder it is called with, which lies beside ``folder``.

    Raises:
        OSError: ``folder`` is not empty, the disk is full, or writing is not permitted.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        write(temporary)
        for path in (*temporary.rglob("*"), temporary):
            if path.is_dir():
                sync_folder(path)
            else:
                with naming(path), path.open("r+b") as file:
                    os.fsync(file.fileno())
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(temporary):
            error.filename = str(folder / Path(error.filename).relative_to(temporary))
        raise
    finally:
        remove_tree(temporary)


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk, where the system can do that."""
    try:
        entries = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it
            os.fsync(entries)
    finally:
        os.close(entries)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, if it exists; what cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with its leading ``~`` expanded; without a home folder it stays as it is."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a name with a zero byte is no user's, and no file's
        return Path(path)


def same_place(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return whether two names are equal, or paths that lead to one file or folder, as ``photos`` and ``photos/``."""
    try:
        return one == other or os.path.samefile(expand_home(one), expand_home(other))
    except (OSError, ValueError):
        return False


@functools.cache
def _without_home() -> Path:
    """Return a folder for a user who has no home: one in the temporary folder that nobody else can write to."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    shared = Path(tempfile.gettempdir()) / f"aimamba-{user}"
    with contextlib.suppress(OSError):
        shared.mkdir(mode=0o700, exist_ok=True)
        status = shared.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o022:
            return shared
    return Path(tempfile.mkdtemp(prefix="aimamba-"))


def cache_folder() -> Path:
    """Return the folder for derived data: ``$AIMAMBA_CACHE``, or ``aimamba`` in the platform's cache folder.

    A user without a home folder, as in some containers, has it in the temporary folder.
    """
    chosen = os.environ.get("AIMAMBA_CACHE")
    if chosen:
        return expand_home(chosen)
    named = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    if folder := os.environ.get(named):
        return Path(folder) / "aimamba"
    inside = {"win32": "~/AppData/Local", "darwin": "~/Library/Caches"}.get(sys.platform, "~/.cache")
    expanded = expand_home(inside)
    return _without_home() if str(expanded).startswith("~") else expanded / "aimamba"


def _fault_of_disk(error: Exception, draft: Path, path: Path, size: int | None) -> OSError | None:
    """Return the system's error behind an error of writing; None if the system is not to blame.

    Libraries hide it: safetensors has its number in a text, torch says that a stream failed, and numpy that fewer
    numbers were written. Then a block is written to the draft to see what the system says.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return named(error, draft, path, size)
    if found := _SYSTEMS_NUMBER.search(str(error)):
        return named(OSError(int(found[1]), os.strerror(int(found[1]))), draft, path, size)
    written = _size(draft)
    try:
        with draft.open("ab") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        with contextlib.suppress(OSError):
            os.truncate(draft, written)
        return None if fault.errno is None else named(OSError(fault.errno, fault.strerror), draft, path, size)
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def amount(size: int) -> str:
    """Return a number of bytes as text."""
    return f"{size:,} bytes" if size < 1e5 else f"{size / 1e6:,.1f} MB"
