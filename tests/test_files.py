"""Files are whole or absent, whatever fails while they are written."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aimamba import files
from aimamba.files import cache_folder, expand_home, remove_drafts, write_atomically, write_folder_atomically

_FULL = """
import resource, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from aimamba.files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
tensors = {"a": torch.zeros(10_000)}
write = {
    "torch": lambda draft: torch.save(tensors, draft),
    "safetensors": lambda draft: save_file(tensors, draft),
    "text": lambda draft: draft.write_text("x" * 10_000),
}
for name, one in write.items():
    try:
        write_atomically(Path(name), one)
    except OSError as error:
        print(name, error.strerror, error.filename)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_a_full_disk_is_an_error_of_the_system_in_every_library(tmp_path):
    command = [sys.executable, "-c", _FULL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{name} File too large {name}" for name in ("torch", "safetensors", "text")]
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path):
    def write(draft):
        draft.write_text("half")
        raise RuntimeError("a bug")

    (tmp_path / "a").write_text("before")
    with pytest.raises(RuntimeError, match="a bug"):
        write_atomically(tmp_path / "a", write)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


@pytest.mark.skipif(os.name == "nt", reason="no modes there")
def test_the_mode_follows_the_umask(tmp_path):
    def closed(draft):
        draft.unlink()  # as safetensors does
        os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", closed)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_link_in_the_place_of_a_draft_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "a.partial").symlink_to("precious")
    write_atomically(tmp_path / "a", lambda draft: draft.write_text("new"), draft="a.partial")
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    seen = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(stat.S_ISDIR(os.fstat(handle).st_mode)), sync(handle)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (seen.append("replaced"), replace(path, target)))
    write_atomically(tmp_path / "a", lambda draft: draft.write_text("x"))
    assert seen == [False, "replaced", True]


def test_a_folder_is_whole_or_absent(tmp_path):
    def write(folder):
        (folder / "part").mkdir()
        (folder / "part" / "a").write_text("x")

    def fail(folder):
        write(folder)
        raise RuntimeError

    target = tmp_path / "above" / "new"
    with pytest.raises(RuntimeError):
        write_folder_atomically(target, fail)
    assert list((tmp_path / "above").iterdir()) == []
    target.mkdir()
    write_folder_atomically(target, write)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        os.path.join("above", "new", "part", "a")
    ]
    with pytest.raises(OSError, match="not empty"):
        write_folder_atomically(target, write)
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["new"]


@pytest.mark.skipif(os.name == "nt", reason="homes are found in another way there")
def test_without_a_home(monkeypatch, tmp_path):
    import pwd

    def unknown(_):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "AIMAMBA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    files._without_home.cache_clear()
    assert expand_home("~/photos") == Path("~/photos")
    assert expand_home("~nobody-of-this-name/photos") == Path("~nobody-of-this-name/photos")
    assert expand_home("~\0") == Path("~\0")
    folder = cache_folder()
    assert folder == tmp_path / f"aimamba-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    folder.chmod(0o777)  # others could have planted something
    files._without_home.cache_clear()
    assert cache_folder() != folder
    files._without_home.cache_clear()


def test_drafts_of_killed_processes_go_and_nothing_else(tmp_path):
    (tmp_path / f".{'ab' * 16}").mkdir()
    for name in ("a", ".a", f".a.png.{'ab' * 16}", f"a.{'ab' * 16}", f".a.{'ab' * 15}"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "a", ".a", f"a.{'ab' * 16}", f".a.{'ab' * 15}", f".{'ab' * 16}",
    }  # fmt: skip
    remove_drafts(tmp_path / "missing")
