"""The vocabulary of captions."""

import json
import pickle
import random
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from aimamba.data.vocabulary import TruncatedCaptionWarning, Vocabulary
from aimamba.errors import CheckpointError, ConfigError, DataError
from refusals import one_line_error

CAPTIONS = [f"a {colour} {thing}, {how} design" for colour in ("red", "green") for thing in ("rocket", "whale's tail")
            for how in ("flat", "noto")]  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(CAPTIONS, size=300)


def test_frequent_words_are_one_token(vocabulary):
    ids, lengths = vocabulary.encode(["a red rocket", "", "A  RED rocket \n"], 6)
    assert (ids.shape, ids.dtype, lengths.dtype) == ((3, 6), "int64", "int64")
    assert lengths.tolist() == [3, 0, 3]
    assert ids[1].tolist() == [0] * 6
    assert ids[0].tolist() == ids[2].tolist()
    assert (ids[0, :3] > 0).all()
    assert ids[0, 3:].tolist() == [0, 0, 0]
    assert len(vocabulary) <= 300
    assert ids.max() < len(vocabulary)


@given(st.text(max_size=40))
def test_every_text_comes_back(vocabulary, text):
    (ids,), (length,) = vocabulary.encode([text], 400)
    assert 0 not in ids[:length]
    assert vocabulary.decode(ids) == vocabulary.normalise(text)


def test_unusual_texts(vocabulary):
    assert vocabulary.decode(vocabulary.encode(["ﬁne <pad> CAFÉ \ud800 🚀"], 99).ids[0]) == "fine <pad> café ? 🚀"
    assert vocabulary.encode(["<pad>"], 99).lengths[0] > 1  # no text is padding
    with pytest.raises(ValueError, match="ids must lie in 0 to"):
        vocabulary.decode([len(vocabulary)])


def test_the_order_of_captions_does_not_matter(vocabulary):
    mixed = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert Vocabulary.train(iter(mixed), size=300) == vocabulary
    assert Vocabulary.train(CAPTIONS[:1], size=300) != vocabulary


def test_saved_and_loaded(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary
    assert loaded.fingerprint() == vocabulary.fingerprint() == pickle.loads(pickle.dumps(loaded)).fingerprint()
    assert (loaded.encode(CAPTIONS, 12).ids == vocabulary.encode(CAPTIONS, 12).ids).all()
    theirs = Tokenizer.from_file(str(tmp_path / "vocabulary.json"))
    assert (
        theirs.encode(CAPTIONS[3]).ids
        == vocabulary.encode(CAPTIONS[3:4], 12).ids[0, : len(theirs.encode(CAPTIONS[3]))].tolist()
    )


def test_a_long_caption_is_cut_with_one_warning(vocabulary):
    vocabulary = Vocabulary.train(CAPTIONS, size=300)
    with pytest.warns(TruncatedCaptionWarning, match="'a red rocket, flat design' has 6 tokens and is cut after 4"):
        ids, lengths = vocabulary.encode(CAPTIONS[:1], 4)
    with warnings.catch_warnings(action="error"):
        assert vocabulary.encode(CAPTIONS[:2], 4).lengths.tolist() == [4, 4]
    assert vocabulary.decode(ids[0]) == "a red rocket,"
    assert lengths.tolist() == [4]


def test_refusals(tmp_path):
    with one_line_error(ConfigError, "257 to 65,536 tokens, got 256"):
        Vocabulary.train(CAPTIONS, size=256)
    for none in ([], ["", " \n"]):
        with one_line_error(DataError, "no caption to learn"):
            Vocabulary.train(none)
    with one_line_error(ConfigError, "at least 1 token"):
        Vocabulary.train(CAPTIONS, size=257).encode([""], 0)
    with one_line_error(CheckpointError, "cannot be read"):
        Vocabulary.load(tmp_path / "missing.json")


def test_files_that_are_no_vocabulary(vocabulary, tmp_path):
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    good = path.read_text()

    def changed(change):
        values = json.loads(good)
        change(values)
        return json.dumps(values)

    def no_byte(values):
        ids = values["model"]["vocab"]
        del ids[next(token for token in ids if len(token) == 1)]
        values["model"]["vocab"] = {token: number for number, token in enumerate(ids)}

    bad = [
        "",
        "[]",
        good[: len(good) // 2],
        changed(lambda values: values["normalizer"]["normalizers"][2]["pattern"].update(Regex="(a+)+$")),
        changed(lambda values: values["added_tokens"].append({"id": 9, "content": "x"})),
        changed(lambda values: values["model"].update(unk_token="x")),
        changed(lambda values: values["model"]["merges"].pop()),
        changed(lambda values: values["model"]["merges"].append(["q", "<pad>"])),
        changed(lambda values: values["model"]["merges"].append(["q"])),
        changed(lambda values: values["model"]["vocab"].update({"<pad>": 7})),
        changed(lambda values: values.update(model=3)),
        changed(no_byte),
    ]
    for text in bad:
        path.write_text(text)
        with one_line_error(CheckpointError, r"vocabulary.json: not a vocabulary that aimamba wrote"):
            Vocabulary.load(path)
