"""Folders, named sets and models as streams of images."""

import numpy as np
import pytest
from PIL import Image

from aimamba.data.avatars import Avatars
from aimamba.errors import ConfigError, DataError
from aimamba.evaluation.sources import ModelSource, make_labels, open_source
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline


def everything(source, batch_size=3):
    return np.concatenate(list(source.batches(batch_size)))


def test_a_named_set():
    source = open_source("avatars-16:held-out:2")
    styles = ("planets", "thumbs", "critters")
    avatars = Avatars(16, "held-out", 2, styles)
    assert (len(source), source.size, source.class_names) == (6, 16, styles)
    assert np.array_equal(everything(source), np.stack([avatars.image(i) for i in range(6)]))
    assert np.array_equal(source.take([5, 3])[1], avatars.image(3))
    assert np.array_equal(source.labels, avatars.labels)
    assert source.identity != open_source("avatars-16:train:2").identity


def test_class_folders(folder, pixels):
    source = open_source(str(folder))
    assert (len(source), source.size, source.class_names) == (10, 8, ("cats", "dogs"))
    assert source.labels.tolist() == [0] * 5 + [1] * 5
    assert np.array_equal(everything(source), pixels(10))


def test_splits_of_a_folder(folder):
    train, held_out = (open_source(f"{folder}:{split}") for split in ("train", "held-out"))
    assert len(train) + len(held_out) == 10
    assert 0 < len(held_out) < len(train)
    assert held_out.class_names == train.class_names == ("cats", "dogs")


def test_loose_images_have_no_labels_and_the_sheet_is_none_of_them(folder):
    Image.new("RGB", (100, 50)).save(folder / "cats" / "sheet.png")
    source = open_source(str(folder / "cats"))
    assert (len(source), source.labels, source.class_names) == (5, None, ())


def test_images_of_different_sizes(folder):
    Image.new("RGB", (12, 16)).save(folder / "cats" / "z.png")
    with pytest.raises(DataError, match=r"z\.png: the image is 12 x 16 pixels, but all must be .* give --size"):
        open_source(str(folder))
    with pytest.raises(DataError, match=r"0\.png: the image is 8 x 8 pixels and would have to be enlarged to 9"):
        open_source(str(folder), size=9)
    source = open_source(str(folder), size=6)
    assert everything(source).shape == (11, 6, 6, 3)


def test_a_changed_file_is_another_identity(folder):
    before = open_source(str(folder)).identity
    assert open_source(str(folder)).identity == before
    Image.new("RGB", (8, 8)).save(folder / "cats" / "0.png")
    assert open_source(str(folder)).identity != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("avatars-64:test", "no avatar style 'test'"),
        ("avatar-64:train", r"no such file, folder or named set \(did you mean 'avatars'"),
        ("nowhere", "nowhere: no such file, folder or named set"),
        ("empty", "there are no images"),
        ("note.txt", "expected a folder of images"),
    ],
)
def test_refusals(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no image")
    with pytest.raises(DataError, match=message):
        open_source(text)


@pytest.fixture
def model(make_aim, make_vq):
    return Pipeline(make_vq(), make_aim(), list("abcde"))


def test_a_model_draws_what_its_pipeline_draws(model):
    config = SamplingConfig(seed=7, cfg_scale=2.0)
    source = ModelSource("tiny", model, make_labels("balanced", 7, 5), config, 4)
    assert (len(source), source.size, source.class_names) == (7, 6, tuple("abcde"))
    assert source.identity is None
    assert source.labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    drawn = everything(source)
    for index in (0, 5, 6):
        [image] = model([index % 5], 1, SamplingConfig(seed=7 + index, cfg_scale=2.0))
        assert np.array_equal(drawn[index], np.asarray(image))
    assert np.array_equal(source.take([6, 0]), drawn[[6, 0]])


def test_labels():
    assert np.bincount(make_labels("balanced", 20, 10)).tolist() == [2] * 10
    random = make_labels("random", 50_000, 1000, seed=1)
    counts = np.bincount(random, minlength=1000)
    assert counts.min() >= 20
    assert 6 < counts.std() < 8  # 7.07 if drawn independently
    assert not np.array_equal(random, make_labels("random", 50_000, 1000, seed=2))
    with pytest.raises(ConfigError, match="balanced or random, got 'even'"):
        make_labels("even", 5, 5)
