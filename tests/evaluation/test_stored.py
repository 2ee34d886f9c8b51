"""Arrays in the cache are read as they were written, or not at all."""

import json

import numpy as np
import pytest

from aimamba.evaluation.stored import StoredArrays

SHAPES = {"one": (3, 2), "two": (4,)}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path))
    kept = StoredArrays("things", {"of": ["a", 1]})
    kept.store({"one": np.arange(6.0).reshape(3, 2), "two": np.ones(4, np.int32)}, score=0.5)
    return kept


def test_what_was_written_is_read(kept):
    arrays, about = StoredArrays("things", {"of": ("a", 1)}).load(SHAPES)
    assert np.array_equal(arrays["one"], np.arange(6.0).reshape(3, 2))
    assert arrays["two"].dtype == np.int32
    assert about["score"] == 0.5
    assert StoredArrays("things", {"of": ["a", 2]}).load(SHAPES) is None


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": lambda folder: flip(folder / "one.npy"),
    "cut short": lambda folder: (folder / "one.npy").write_bytes((folder / "one.npy").read_bytes()[:-8]),
    "1e30": lambda folder: np.save(folder / "one.npy", np.full((3, 2), 1e30)),
    "gone": lambda folder: (folder / "two.npy").unlink(),
    "no JSON": lambda folder: (folder / "provenance.json").write_text("{"),
    "nested": lambda folder: (folder / "provenance.json").write_text("[" * 100_000),
    "a list": lambda folder: (folder / "provenance.json").write_text("[]"),
    "no checksums": lambda folder: (folder / "provenance.json").write_text('{"of": ["a", 1]}'),
    "not UTF-8": lambda folder: (folder / "provenance.json").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_counts_as_absent(kept, damage):
    DAMAGE[damage](kept.folder)
    assert kept.load(SHAPES) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_count_as_absent(kept, value):
    kept.store({"one": np.full((3, 2), value), "two": np.ones(4)})
    assert kept.load(SHAPES) is None


def test_another_shape_and_another_origin_count_as_absent(kept):
    assert kept.load({"one": (2, 3)}) is None
    about = json.loads((kept.folder / "provenance.json").read_text())
    (kept.folder / "provenance.json").write_text(json.dumps({**about, "of": "others"}))
    assert kept.load(SHAPES) is None


def test_a_folder_that_cannot_be_written_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    StoredArrays("things", {}).store({"one": np.ones(2)})
    assert StoredArrays("things", {}).load({"one": (2,)}) is None
