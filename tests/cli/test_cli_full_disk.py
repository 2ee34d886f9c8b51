"""A disk that is full at one moment: one line, and the same command ends with the files of one that never stopped."""

import re
from pathlib import Path

import pytest

from aimamba.data import writer
from aimamba.files import write_atomically
from full_disk import FullAt, in_child, mount_small_disk, no_room

COMMANDS = {
    "sample": ("sample", "--model", "{models}/pipeline", "-n", "1", "--classes", "planets,1", "--batch-size", "2"),
    "npz": ("sample", "--model", "{models}/pipeline", "-n", "4", "--batch-size", "2", "--npz", "{out}/a.npz"),
    "encode": ("encode", "{models}/tokenizer", "photos", "--size", "16"),
    "reconstruct": ("reconstruct", "photos/cats", "--model", "{models}/tokenizer", "--size", "16"),
    "convert": ("convert", "{models}/pipeline"),
    "evaluate": ("evaluate", "photos", "--reference", "photos", "--size", "16", "--report", "{out}/r"),
}


def given(command: str, models: Path, out: str) -> list[str]:
    words = [word.format(models=models, out=out) for word in COMMANDS[command]]
    return words if any(out in word for word in words) else [*words, "--out", out]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_it_goes_on(here, models, photos, aimamba, light, monkeypatch, command):
    (here / "out").mkdir()
    with monkeypatch.context() as patch:
        counted = FullAt(patch, 0)
        assert aimamba(*given(command, models, "out")).status == 0
    whole = content(here / "out")
    (here / "out").rename(here / "whole")
    moments = sorted({1, 1 + counted.count // 2, counted.count})
    for number in moments:
        (here / "out").mkdir()
        with monkeypatch.context() as patch:
            FullAt(patch, number)
            status, _, err = aimamba(*given(command, models, "out"))
        lines = [line for line in re.split("[\n\r]", err) if line.startswith("aimamba: ")]
        said = r"aimamba: .*out.*: No space left on device \(.* needed, .* free\); make room and run the same .* again"
        if (status, lines) != (0, []):  # what is only kept for the next time may fail
            assert status == 2
            assert [re.fullmatch(said, line) is not None for line in lines] == [True], err
            left = content(here / "out")
            drafts = [name for name in left if Path(name).name.startswith(".") or name.endswith(".partial")]
            assert drafts == []
            same = [name for name in left if name in whole and Path(name).name != "sums.json"]  # which grows
            assert [name for name in same if whole[name] != left[name]] == []
            again = aimamba(*given(command, models, "out"))
            assert again.status == 0, again.err
        assert content(here / "out") == whole, number
        (here / "out").rename(here / f"out-{number}")


@pytest.mark.parametrize("number", [3, 5])
def test_several_writers_say_it_once(here, models, aimamba, light, monkeypatch, number):
    """What other threads have written by then stays, and no thread leaves a draft."""
    monkeypatch.setattr(writer, "usable_cores", lambda: 8)
    command = ["sample", "--model", models / "pipeline", "-n", "3", "--classes", "planets,1", "--batch-size", "6"]
    assert aimamba(*command, "--out", "whole").status == 0
    with monkeypatch.context() as patch:
        FullAt(patch, number)
        status, _, err = aimamba(*command, "--out", "out")
    assert status == 2
    assert len([line for line in re.split("[\n\r]", err) if line.startswith("aimamba: ")]) == 1, err
    left, whole = content(here / "out"), content(here / "whole")
    assert [name for name in left if whole.get(name) != left[name]] == []
    assert aimamba(*command, "--out", "out").status == 0
    assert content(here / "out") == whole


def test_a_disk_without_room(here, models, photos, aimamba, light):
    """The same on a real one that is full from the beginning."""
    (here / "disk").mkdir()

    def check() -> None:
        if not mount_small_disk(here / "disk"):
            (here / "skipped").touch()
            return
        for command in COMMANDS:
            (here / "disk" / command).mkdir()
        with no_room(here / "disk"):
            for command in COMMANDS:
                out = f"disk/{command}"
                status, _, err = aimamba(*given(command, models, out))
                [line] = [line for line in re.split("[\n\r]", err) if line.startswith("aimamba: ")]
                assert status == 2
                assert re.match(rf"aimamba: .*{out}.*: No space left on device \(.* needed, 0 bytes free\); make", line)
                assert content(here / out) == {}

    in_child(check)
    if (here / "skipped").exists():
        pytest.skip("mounting a file system is not permitted")


def test_the_size_that_is_known_is_told(tmp_path, monkeypatch):
    for size, told in ((None, "more than 6 bytes"), (3_200_000, r"3\.2 MB")):
        with monkeypatch.context() as patch:
            FullAt(patch, 1)
            with pytest.raises(OSError, match=rf"\({told} needed, [\d,.]+ (MB|bytes) free\)"):
                write_atomically(tmp_path / "a", lambda draft: draft.write_text("123456"), size=size)
