"""The cache of captions' vectors: equal to the encoder's to the bit, whole, shared, and never trusted when damaged."""

import multiprocessing
import os
import time

import numpy as np
import pytest
import torch

from aimamba.errors import CheckpointError, ConfigError, DataError
from aimamba.networks import caption_vectors
from aimamba.networks.caption_vectors import CaptionVectors
from aimamba.networks.sentence import SentenceEncoder
from refusals import one_line_error
from sentence_files import WIDTH, WORDS, write_encoder

LENGTH = 4
TEXTS = ["", *(f"a {color} {thing} on the hat" for color in WORDS[2:5] for thing in WORDS[4:9]), "cat", "Ünïcode ж"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return SentenceEncoder.load(write_encoder(tmp_path_factory.mktemp("encoder") / "tiny"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(encoder, monkeypatch):
    """The captions that are encoded."""
    seen, pieces = [], encoder.pieces

    def count(texts, length):
        seen.extend(texts)
        return pieces(texts, length)

    monkeypatch.setattr(encoder, "pieces", count)
    return seen


def files(vectors):
    return sorted(vectors.folder.glob("*"))


def test_each_caption_is_encoded_once(encoder, counted, monkeypatch):
    monkeypatch.setattr(caption_vectors, "_AT_ONCE", 3)
    monkeypatch.setattr(caption_vectors, "_LOOKED_UP", 5)
    expected, done = encoder.encode(TEXTS, LENGTH), []
    counted.clear()
    vectors = CaptionVectors(encoder, LENGTH)
    assert not any(text in vectors for text in TEXTS)
    vectors.prepare(iter(TEXTS * 3), progress=done.append)
    assert sum(done) == len(TEXTS) * 3
    assert sorted(counted) == sorted(TEXTS)
    assert len(files(vectors)) == 1
    assert all(text in vectors for text in TEXTS)
    found = vectors.take(TEXTS[::-1])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.flip(0))
    assert vectors.take([]).shape == (0, LENGTH, WIDTH)
    again = CaptionVectors(encoder, LENGTH)
    again.prepare(TEXTS)
    assert torch.equal(again.take(TEXTS), expected)
    assert len(counted) == len(TEXTS)
    again.prepare(["a new hat"], progress=done.append)
    assert counted[len(TEXTS) :] == ["a new hat"]
    assert len(files(vectors)) == 2


def test_unknown_captions_are_computed(encoder, counted):
    vectors = CaptionVectors(encoder, LENGTH)
    vectors.prepare(TEXTS[:3])
    assert torch.equal(vectors.take(TEXTS), encoder.encode(TEXTS, LENGTH))
    assert len(files(vectors)) == 1


def test_encoders_and_lengths_have_caches_of_their_own(encoder, tmp_path):
    CaptionVectors(encoder, LENGTH).prepare(TEXTS)
    other = SentenceEncoder.load(write_encoder(tmp_path / "other", seed=1))
    for vectors in (CaptionVectors(encoder, LENGTH + 1), CaptionVectors(other, LENGTH)):
        assert TEXTS[1] not in vectors
        assert torch.equal(vectors.take(TEXTS), vectors.encoder.encode(TEXTS, vectors.length))


def test_many_captions_become_several_files(encoder, counted, monkeypatch):
    monkeypatch.setattr(caption_vectors, "_PER_FILE", 6)
    monkeypatch.setattr(caption_vectors, "_LOOKED_UP", 4)
    vectors = CaptionVectors(encoder, LENGTH)
    vectors.prepare(TEXTS)
    assert len(files(vectors)) == 3
    assert len(counted) == len(TEXTS)
    assert torch.equal(vectors.take(TEXTS), encoder.encode(TEXTS, LENGTH))
    assert torch.equal(CaptionVectors(encoder, LENGTH).take(TEXTS), vectors.take(TEXTS))


def test_an_interrupted_call_goes_on(encoder, counted, monkeypatch):
    monkeypatch.setattr(caption_vectors, "_PER_FILE", 6)
    monkeypatch.setattr(caption_vectors, "_LOOKED_UP", 6)

    def stop_at_the_second(path, write):
        if files(vectors):
            write(path.with_name("draft"))
            path.with_name("draft").unlink()
            raise KeyboardInterrupt
        return atomically(path, write)

    atomically, vectors = caption_vectors.write_atomically, CaptionVectors(encoder, LENGTH)
    monkeypatch.setattr(caption_vectors, "write_atomically", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        vectors.prepare(TEXTS)
    monkeypatch.setattr(caption_vectors, "write_atomically", atomically)
    counted.clear()
    again = CaptionVectors(encoder, LENGTH)
    again.prepare(TEXTS)
    assert len(counted) == len(TEXTS) - 6


def test_what_another_process_writes_meanwhile_is_taken(encoder, counted, monkeypatch):
    monkeypatch.setattr(caption_vectors, "_LOOKED_UP", 4)
    first, second = CaptionVectors(encoder, LENGTH), CaptionVectors(encoder, LENGTH)

    def texts():
        yield from TEXTS[:8]
        second.prepare(TEXTS[:6])
        yield from TEXTS[8:]

    done = []
    first.prepare(texts(), progress=done.append)
    assert sorted(counted) == sorted(TEXTS)
    assert sum(done) == len(TEXTS)
    assert torch.equal(first.take(TEXTS), encoder.encode(TEXTS, LENGTH))


@pytest.mark.parametrize("place", ["vectors", "index", "footer", "magic", "end", "empty"])
def test_damage_is_found_and_made_again(encoder, counted, capsys, place):
    CaptionVectors(encoder, LENGTH).prepare(TEXTS)
    (path,) = files(CaptionVectors(encoder, LENGTH))
    whole = path.read_bytes()
    positions = {"vectors": 5, "index": len(whole) - 64 - 30, "footer": len(whole) - 3, "magic": len(whole) - 64}
    damaged = bytearray(whole)
    if place in positions:
        damaged[positions[place]] ^= 1
    path.write_bytes({"end": whole[:-9], "empty": b""}.get(place, bytes(damaged)))
    expected = encoder.encode(TEXTS, LENGTH)
    capsys.readouterr()
    vectors = CaptionVectors(encoder, LENGTH)
    for _ in range(2):
        assert torch.equal(vectors.take(TEXTS), expected)
    assert capsys.readouterr().err == f"{path}: damaged; the vectors of its captions are computed again\n"
    assert not path.exists()
    CaptionVectors(encoder, LENGTH).prepare(TEXTS)
    assert path.read_bytes() == whole
    counted.clear()
    assert torch.equal(CaptionVectors(encoder, LENGTH).take(TEXTS), expected)
    assert not counted


def test_equal_keys_are_told_apart(encoder, monkeypatch):
    """The first 8 bytes of two captions' sums are the same."""
    key = caption_vectors._key
    monkeypatch.setattr(caption_vectors, "_key", lambda text: (7, key(text)[1]))
    vectors = CaptionVectors(encoder, LENGTH)
    vectors.prepare(["cat"])
    assert torch.equal(vectors.take(["dog", "cat"]), encoder.encode(["dog", "cat"], LENGTH))


def test_drafts_of_killed_processes_are_removed(encoder):
    vectors = CaptionVectors(encoder, LENGTH)
    vectors.folder.mkdir(parents=True)
    old, young = (vectors.folder / f".1{age}.vectors.{age * 16}" for age in ("ab", "cd"))
    for path in (old, young):
        path.write_bytes(b"a part")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    vectors.prepare(TEXTS)
    assert not old.exists()
    assert young.exists()


def test_a_cache_that_cannot_be_written(encoder, cache):
    cache.write_text("a file where a folder should be")
    vectors = CaptionVectors(encoder, LENGTH)
    assert torch.equal(vectors.take(TEXTS), encoder.encode(TEXTS, LENGTH))
    with one_line_error(DataError, match="vectors of captions cannot be kept: .*; set AIMAMBA_CACHE to a folder"):
        vectors.prepare(TEXTS)


def test_bad_captions_and_lengths(encoder, monkeypatch):
    vectors = CaptionVectors(encoder, LENGTH)
    for call in (vectors.prepare, vectors.take):
        with one_line_error(DataError, match="caption '.ud800 cat': has half of a surrogate pair"):
            call(["dog", "\ud800 cat"])
        with one_line_error(ConfigError, match="got one text; put it into a list"):
            call("dog")
    with one_line_error(DataError, match="a caption is text, got int"):
        vectors.prepare(iter(["dog", 3]))
    with one_line_error(ConfigError, match="length must be from 1 to 10 word pieces, got 0"):
        CaptionVectors(encoder, 0)
    monkeypatch.setattr(encoder.network.norm, "eps", float("nan"))
    with one_line_error(CheckpointError, match="NaN"):
        vectors.prepare(TEXTS)
    assert not files(vectors)


def prepare(folder, texts):
    CaptionVectors(SentenceEncoder.load(folder), LENGTH).prepare(texts)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks")
def test_two_processes_at_once(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_vectors, "_PER_FILE", 3)
    monkeypatch.setattr(caption_vectors, "_LOOKED_UP", 3)
    folder, context = write_encoder(tmp_path / "tiny"), multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare, args=(folder, texts)) for texts in (TEXTS, TEXTS[5:] + TEXTS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    vectors = CaptionVectors(encoder, LENGTH)
    assert all(text in vectors for text in TEXTS)
    assert np.array_equal(vectors.take(TEXTS), encoder.encode(TEXTS, LENGTH))
