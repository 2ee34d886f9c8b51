"""Codes at ImageNet's size: the command, at a small one."""

import sys

import pytest

from aimamba.data.shards import open_code_splits
from benchmarks import codes


def test_the_command(monkeypatch, capsys, tmp_path):
    arguments = "--images 300 --views 2 --ranks 2 --batch 8 --seconds 0.2 --folder"
    monkeypatch.setattr(codes, "_HELD_OUT", 10)
    monkeypatch.setattr(sys, "argv", ["codes", *arguments.split(), str(tmp_path)])
    codes.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wrote 0.00 GB in ")
    assert lines[1].startswith("start-up, files not in memory: opened after ")
    assert lines[3].startswith("2 ranks at once on ")
    assert list(tmp_path.iterdir()) == []  # the codes are removed


def test_codes_that_do_not_fit_on_the_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["codes", "--images", str(10**9), "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"5120\.0 GB of codes do not fit: [\d.]+ GB are free"):
        codes.main()
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_what_encode_writes(tmp_path):
    for split in ("train", "held-out"):
        codes.write_codes(tmp_path / split, images=5000, views=2, seed=0)
    found = open_code_splits(tmp_path)
    assert [len(shard) for shard in found.train.shards] == [4096, 904]
    assert found.train.views == 2
    assert found.meta.grid == (16, 16)
    assert int(found.train.labels.max()) < len(found.meta.class_names)
