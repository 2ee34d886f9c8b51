"""Codes on disk."""

import errno
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from aimamba.data.codes import CodeSet, encode_images, view_names
from aimamba.data.encoding import encode_splits, encode_to_shards
from aimamba.data.folder import ImageFolder
from aimamba.data.sets import Splits
from aimamba.data.shards import fingerprint, open_code_splits, open_codes
from aimamba.data.sheets import to_float
from aimamba.data.transforms import center_crop, ten_crop, to_array
from aimamba.errors import ConfigError, DataError
from benchmarks.codes import write_codes
from full_disk import FullAt
from refusals import one_line_error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven noisy images of two classes, 20 x 24 pixels."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(7):
        place = root / ("cats" if number < 4 else "dogs")
        place.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(place / f"{number}.png")
    return root


@pytest.fixture
def images(folder):
    return ImageFolder(folder, size=16, split="all", upscale=True)


@pytest.fixture
def tokenizer(make_vq):
    return make_vq()


def codes_of(tokenizer, image):
    pixels = torch.from_numpy(to_array(image)).permute(2, 0, 1)[None]
    return tokenizer.encode(to_float(pixels)).flatten().tolist()


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_the_codes_of_every_view(tokenizer, images, tmp_path):
    done = []
    encode_to_shards(
        tokenizer,
        images,
        tmp_path,
        views="center-flip",
        batch_size=2,
        shard_pictures=3,
        progress=lambda now, total: done.append((now, total)),
    )
    assert sorted(path.name for path in tmp_path.glob("codes-*")) == [f"codes-0000{i}.npy" for i in range(3)]
    assert done[-1] == (7, 7)
    meta, codes = open_codes(tmp_path, tokenizer)
    assert (meta.grid, meta.class_names, meta.pictures) == ((8, 8), ("cats", "dogs"), 7)
    assert (len(codes), codes.views) == (7, 2)
    assert codes.labels.tolist() == [0] * 4 + [1] * 3
    for index in range(7):
        image = center_crop(images.original(index), 16)
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        plain, flipped = codes.take([index, index], [0, 1]).tolist()
        assert plain == codes_of(tokenizer, image)
        assert flipped == codes_of(tokenizer, mirrored)
    assert all(isinstance(shard, np.memmap) for shard in codes.shards)


def test_ten_crop_is_llamagens_two_ranges(tokenizer, images, tmp_path):
    assert len(view_names("ten-crop")) == 20
    encode_to_shards(tokenizer, images, tmp_path, views="ten-crop")
    _, codes = open_codes(tmp_path)
    image = images.original(5)
    expected = [*ten_crop(image, 16, crop_range=1.1), *ten_crop(image, 16, crop_range=1.05)]
    assert codes.take([5] * 20, range(20)).tolist() == [codes_of(tokenizer, crop) for crop in expected]


def test_both_splits_are_encoded_as_each_by_itself(tokenizer, folder, tmp_path, capfd):
    train, held_out = (ImageFolder(folder, size=16, split=split) for split in ("train", "held-out"))
    metas = encode_splits(tokenizer, Splits(train, held_out), tmp_path / "both", views="center-flip", batch_size=2)
    assert capfd.readouterr() == ("", "")
    assert encode_to_shards(tokenizer, train, tmp_path / "train", views="center-flip", batch_size=2) == metas[0]
    assert encode_to_shards(tokenizer, held_out, tmp_path / "held-out", batch_size=2) == metas[1]
    for split in ("train", "held-out"):
        assert bytes_of(tmp_path / "both" / split) == bytes_of(tmp_path / split)
    codes = open_code_splits(tmp_path / "both", tokenizer)
    assert (codes.meta, codes.train.views, codes.held_out.views) == (metas[0], 2, 1)
    assert len(codes.train) + len(codes.held_out) == 7
    encode_splits(tokenizer, Splits(train, held_out), tmp_path / "both", views="center-flip", progress=True)
    assert "held-out: 100%" in capfd.readouterr().err


@pytest.mark.parametrize("harm", ["missing", "cut short", "interrupted"])
def test_an_interrupted_encoding_goes_on_and_gives_the_same_bytes(tokenizer, images, tmp_path, harm):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    encode_to_shards(tokenizer, images, whole, batch_size=2, shard_pictures=3)

    class StoppedError(Exception):
        pass

    def stop(done, total):
        if harm == "interrupted" and done > 3:
            raise StoppedError

    try:
        encode_to_shards(tokenizer, images, broken, batch_size=2, shard_pictures=3, progress=stop)
    except StoppedError:
        assert harm == "interrupted"
    shard = broken / "codes-00001.npy"
    if harm == "missing":
        shard.unlink()
    elif harm == "cut short":
        shard.write_bytes(shard.read_bytes()[:-5])
    first = "codes-00000.npy" if harm == "interrupted" else "codes-00001.npy"
    with pytest.raises(DataError, match=f"{first}: missing or cut short"):
        open_codes(broken)
    encode_to_shards(tokenizer, images, broken, batch_size=2, shard_pictures=3)
    assert bytes_of(broken) == bytes_of(whole)


def test_an_encoding_stopped_at_any_moment_ends_with_the_same_bytes(tokenizer, images, tmp_path, monkeypatch):
    def encode(name):
        encode_to_shards(tokenizer, images, tmp_path / name, batch_size=2, shard_pictures=3)

    with monkeypatch.context() as patch:
        counted = FullAt(patch, 0)
        encode("whole")
    assert counted.count == 12, "labels, meta.json, five batches, three shards, and the sums before and after"
    for number in range(1, counted.count + 1):
        with monkeypatch.context() as patch:
            FullAt(patch, number)
            with pytest.raises(OSError, match="No space left"):
                encode("broken")
        encode("broken")
        assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "whole")
        shutil.rmtree(tmp_path / "broken")


@pytest.mark.parametrize("name", ["codes-00001.npy", "labels.npy", "meta.json", "sums.json"])
def test_a_flipped_bit_is_found_and_an_encoding_mends_it(tokenizer, images, tmp_path, name):
    encode_to_shards(tokenizer, images, tmp_path, shard_pictures=3)
    whole, path = bytes_of(tmp_path), tmp_path / name
    content = bytearray(path.read_bytes())
    place = content.index(b"cats") if name == "meta.json" else len(content) - (4 if name == "sums.json" else 8)
    content[place] ^= 1
    path.write_bytes(content)
    with one_line_error(DataError, match=rf"{re.escape(name)}: damaged.* encode"):
        open_codes(tmp_path)
    if name.endswith("npy"):
        encode_to_shards(tokenizer, images, tmp_path, shard_pictures=3)
        assert bytes_of(tmp_path) == whole


def test_swapped_shards_are_found(tokenizer, images, tmp_path):
    encode_to_shards(tokenizer, images, tmp_path, shard_pictures=3)
    whole, swap = bytes_of(tmp_path), tmp_path / "swap"
    (tmp_path / "codes-00000.npy").rename(swap)
    (tmp_path / "codes-00001.npy").rename(tmp_path / "codes-00000.npy")
    swap.rename(tmp_path / "codes-00001.npy")
    with one_line_error(DataError, match=r"codes-0000\d\.npy: damaged, or not what was encoded"):
        open_codes(tmp_path)
    encode_to_shards(tokenizer, images, tmp_path, shard_pictures=3)
    assert bytes_of(tmp_path) == whole


def test_codes_without_sums_are_those_of_an_earlier_version(tokenizer, images, tmp_path):
    encode_to_shards(tokenizer, images, tmp_path, shard_pictures=3)
    (tmp_path / "sums.json").unlink()
    (tmp_path / "codes-00001.npy").unlink()
    encode_to_shards(tokenizer, images, tmp_path, shard_pictures=3)
    assert not (tmp_path / "sums.json").exists()
    assert len(open_codes(tmp_path)[1]) == 7


def test_other_codes_in_the_folder_are_not_overwritten(tokenizer, make_vq, images, tmp_path):
    encode_to_shards(tokenizer, images, tmp_path)
    before = bytes_of(tmp_path)
    with pytest.raises(ConfigError, match="codes of another views"):
        encode_to_shards(tokenizer, images, tmp_path, views="center-flip")
    with pytest.raises(ConfigError, match="codes of another tokenizer"):
        encode_to_shards(make_vq(seed=1), images, tmp_path)
    assert bytes_of(tmp_path) == before


def test_codes_of_another_tokenizer_are_refused(tokenizer, make_vq, images, tmp_path):
    encode_to_shards(tokenizer, images, tmp_path)
    with pytest.raises(DataError, match="written by another tokenizer"):
        open_codes(tmp_path, make_vq(seed=1))
    assert open_codes(tmp_path, make_vq())[0].tokenizer == fingerprint(tokenizer)


def test_fingerprint_is_of_config_and_of_weights_that_decide_codes(make_vq, tmp_path):
    one = make_vq()
    one.save_pretrained(tmp_path)
    assert fingerprint(type(one).from_pretrained(tmp_path)) == fingerprint(one)
    assert fingerprint(make_vq(commitment_weight=0.5)) != fingerprint(one)
    before = fingerprint(one)
    with torch.no_grad():
        for weight in (one.decoder.head.weight, one.from_code.weight):
            weight[0, 0] += 1
            assert fingerprint(one) == before, "another decoder draws the same codes"
        for weight in (one.encoder.stem.weight, one.to_code.weight, one.codebook):
            kept = weight.clone()
            weight[0, 0] += 1
            assert fingerprint(one) != before
            weight.copy_(kept)
            assert fingerprint(one) == before


def labels_beyond(folder):
    np.save(folder / "labels.npy", np.full(7, 2))


def labels_short(folder):
    np.save(folder / "labels.npy", np.zeros(6, np.int64))


def meta_damaged(folder):
    (folder / "meta.json").write_text("{")


def meta_unknown(folder):
    values = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(values | {"colour": 1}))


def meta_gone(folder):
    (folder / "meta.json").unlink()


def labels_negative(folder):
    np.save(folder / "labels.npy", np.full(7, -1))


def labels_of_another_type(folder):
    np.save(folder / "labels.npy", np.zeros(7, "M8[s]"))


def labels_an_archive(folder):
    with (folder / "labels.npy").open("wb") as file:
        np.savez(file, a=np.zeros(7, np.int64))


def labels_with_a_hostile_header(folder):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (((((((((}"
    (folder / "labels.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def labels_a_pipe(folder):
    (folder / "labels.npy").unlink()
    os.mkfifo(folder / "labels.npy")


def meta_a_pipe(folder):
    (folder / "meta.json").unlink()
    os.mkfifo(folder / "meta.json")


def code_beyond(folder):
    codes = np.load(folder / "codes-00000.npy")
    codes[3, 0, 5] = 24
    np.save(folder / "codes-00000.npy", codes)


def codes_of_another_shape(folder):
    np.save(folder / "codes-00000.npy", np.load(folder / "codes-00000.npy")[:, :, :-1])


def with_meta(**changes):
    def harm(folder):
        values = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(values | changes))

    harm.__name__ = "meta_" + "_".join(map(str, changes))
    return harm


def meta_nested(folder):
    (folder / "meta.json").write_text("[" * 100_000)


def meta_with_a_long_number(folder):
    (folder / "meta.json").write_text('{"pictures": ' + "9" * 5000 + "}")


HARMS = [
    *(labels_beyond, labels_short, labels_negative, labels_of_another_type, labels_an_archive, labels_a_pipe),
    *(labels_with_a_hostile_header, code_beyond, codes_of_another_shape),
    *(meta_damaged, meta_unknown, meta_gone, meta_a_pipe, meta_nested, meta_with_a_long_number),
    with_meta(pictures=0),
    with_meta(pictures=10**400),
    with_meta(pictures=-1),
    with_meta(shard_pictures=0),
    with_meta(codebook_size=0),
    with_meta(codebook_size=10**6),
    with_meta(grid=[]),
    with_meta(grid=[10**9, 10**9]),
    with_meta(class_names=[]),
    with_meta(views=[]),
    with_meta(size=0),
]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_damage_is_refused_in_one_line(tokenizer, images, tmp_path, harm):
    encode_to_shards(tokenizer, images, tmp_path)
    harm(tmp_path)
    with one_line_error(DataError) as caught:
        open_codes(tmp_path)
    assert "encode" in str(caught.value)


def test_views_must_be_known(tokenizer, images, tmp_path):
    with pytest.raises(ConfigError, match="views must be one of center, center-flip, ten-crop, moved-N, got 'all'"):
        encode_to_shards(tokenizer, images, tmp_path, views="all")
    assert not list(tmp_path.iterdir())


def test_ten_crop_needs_whole_images(tokenizer, tmp_path):
    class Dots:
        class_names = ("dots",)
        labels = np.zeros(1, np.int64)
        size = 16

        def __len__(self):
            return 1

        def image(self, index, rng=None):
            return np.zeros((16, 16, 3), np.uint8)

    with pytest.raises(ConfigError, match="'ten-crop' needs a folder of images"):
        encode_to_shards(tokenizer, Dots(), tmp_path, views="ten-crop")
    assert encode_to_shards(tokenizer, Dots(), tmp_path).pictures == 1


class TestOtherImages:
    """An encoding goes on with the images that it began with, or not at all."""

    @pytest.fixture
    def copy(self, folder, tmp_path):
        """The photos in a place where they can be changed, and how to open them."""
        shutil.copytree(folder, tmp_path / "photos")
        return tmp_path / "photos", lambda: ImageFolder(tmp_path / "photos", size=16, split="all", upscale=True)

    @pytest.mark.parametrize("finished", [True, False])
    def test_one_changed_image_is_noticed(self, tokenizer, copy, tmp_path, finished):
        photos, opened = copy
        encode_to_shards(tokenizer, opened(), tmp_path / "out", shard_pictures=3)
        if not finished:
            (tmp_path / "out" / "codes-00002.npy").unlink()
        before = bytes_of(tmp_path / "out")
        pixels = np.array(Image.open(photos / "dogs" / "6.png"))
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(photos / "dogs" / "6.png")
        with pytest.raises(ConfigError, match=r"holds codes of other images .* remove that folder and encode again"):
            encode_to_shards(tokenizer, opened(), tmp_path / "out", shard_pictures=3)
        assert bytes_of(tmp_path / "out") == before

    def test_images_in_another_order_or_number_are_noticed(self, tokenizer, copy, tmp_path):
        photos, opened = copy
        encode_to_shards(tokenizer, opened(), tmp_path / "out")
        (photos / "cats" / "3.png").rename(photos / "dogs" / "3.png")
        with pytest.raises(ConfigError, match="codes of other images"):
            encode_to_shards(tokenizer, opened(), tmp_path / "out")
        (photos / "dogs" / "3.png").unlink()
        with pytest.raises(ConfigError, match="codes of other images"):
            encode_to_shards(tokenizer, opened(), tmp_path / "out")

    def test_a_copy_of_the_images_is_the_same(self, tokenizer, images, copy, tmp_path):
        photos, opened = copy
        encode_to_shards(tokenizer, images, tmp_path / "out")
        os.utime(photos / "cats" / "0.png", (0, 0))
        before = bytes_of(tmp_path / "out")
        encode_to_shards(tokenizer, opened(), tmp_path / "out")
        assert bytes_of(tmp_path / "out") == before

    def test_a_set_without_files_is_known_by_its_pixels(self, tokenizer, tmp_path):
        class Dots:
            class_names = ("dots",)
            labels = np.zeros(2, np.int64)
            size = 16

            def __init__(self, last):
                self.last = last

            def __len__(self):
                return 2

            def image(self, index, rng=None):
                return np.full((16, 16, 3), index * self.last, np.uint8)

        encode_to_shards(tokenizer, Dots(4), tmp_path)
        encode_to_shards(tokenizer, Dots(4), tmp_path)
        with pytest.raises(ConfigError, match="codes of other images"):
            encode_to_shards(tokenizer, Dots(5), tmp_path)

    def test_folders_written_before_the_hash(self, tokenizer, images, copy, tmp_path):
        photos, opened = copy
        encode_to_shards(tokenizer, images, tmp_path / "out", shard_pictures=3)
        meta = json.loads((tmp_path / "out" / "meta.json").read_text())
        del meta["images"]
        (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))
        (tmp_path / "out" / "sums.json").unlink()
        before = bytes_of(tmp_path / "out")
        open_codes(tmp_path / "out", tokenizer)
        encode_to_shards(tokenizer, images, tmp_path / "out", shard_pictures=3)
        assert bytes_of(tmp_path / "out") == before
        (photos / "cats" / "3.png").rename(photos / "dogs" / "3.png")
        with pytest.raises(ConfigError, match="codes of other images"):
            encode_to_shards(tokenizer, opened(), tmp_path / "out", shard_pictures=3)
        (tmp_path / "out" / "codes-00001.npy").unlink()
        with pytest.raises(ConfigError, match="does not say which images it is of"):
            encode_to_shards(tokenizer, images, tmp_path / "out", shard_pictures=3)

    def test_codes_without_a_description_are_not_taken(self, tokenizer, images, tmp_path):
        encode_to_shards(tokenizer, images, tmp_path)
        (tmp_path / "meta.json").unlink()
        with pytest.raises(ConfigError, match=r"holds codes but no meta\.json"):
            encode_to_shards(tokenizer, images, tmp_path)


def test_a_set_without_images_is_refused(tokenizer, tmp_path):
    class Empty:
        class_names = ("dots",)
        labels = np.zeros(0, np.int64)
        size = 16

        def __len__(self):
            return 0

        def image(self, index, rng=None):
            raise IndexError

    with pytest.raises(DataError, match="there are no images to encode"):
        encode_to_shards(tokenizer, Empty(), tmp_path / "out")
    with pytest.raises(DataError, match="there are no images to encode"):
        encode_images(tokenizer, Empty())
    with pytest.raises(DataError, match="at least one, got 0 and 0"):
        CodeSet([], np.zeros(0, np.int64))


def test_the_number_of_codes_is_the_tokenizers(tokenizer, images, tmp_path):
    encode_to_shards(tokenizer, images, tmp_path)
    with_meta(codebook_size=25)(tmp_path)
    with pytest.raises(DataError, match="codebook_size is 25, but the tokenizer has 24 codes"):
        open_codes(tmp_path, tokenizer)


def test_both_splits_must_be_of_one_tokenizer(tokenizer, make_vq, images, tmp_path):
    encode_to_shards(tokenizer, images, tmp_path / "train")
    encode_to_shards(make_vq(seed=1), images, tmp_path / "held-out")
    with pytest.raises(DataError, match="train and held-out differ in tokenizer; encode both together"):
        open_code_splits(tmp_path)


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Codes that are too many to be read at once, of which one in the middle of the second shard is out of range."""
    write_codes(tmp_path / "codes", images=5000, views=2, seed=0)
    path = tmp_path / "codes" / "codes-00001.npy"
    shard = np.load(path, mmap_mode="r+")
    shard[300, 1, 7] = 20_000
    shard.flush()
    monkeypatch.setattr("aimamba.data.shards._CHECKED_AT_ONCE", 1 << 20)
    return tmp_path / "codes"


def test_codes_of_a_large_set_are_checked_when_they_are_taken(many):
    _, codes = open_codes(many)
    assert codes.take([0, 4096 + 300], [0, 0]).shape == (2, 256)
    with one_line_error(DataError, match=r"codes-00001\.npy: codes must lie in 0 to 16383, got 20000; remove"):
        codes.take([0, 4096 + 300], [0, 1])


def test_codes_of_a_small_set_are_checked_at_once(many, monkeypatch):
    monkeypatch.undo()
    with one_line_error(DataError, match=r"codes-00001\.npy: codes must lie in 0 to 16383, got 20000"):
        open_codes(many)


def test_the_ends_of_every_shard_of_a_large_set_are_checked_at_once(many):
    shard = np.load(many / "codes-00000.npy", mmap_mode="r+")
    shard[-1, 0, 0] = 16_384
    shard.flush()
    with one_line_error(DataError, match=r"codes-00000\.npy: codes must lie in 0 to 16383, got 16384"):
        open_codes(many)


def test_a_disk_that_does_not_answer_is_not_called_damage(tokenizer, images, tmp_path, monkeypatch):
    encode_to_shards(tokenizer, images, tmp_path / "codes")

    def load(path, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(np, "load", load)
    with one_line_error(DataError, "cannot be read .Too many open files"):
        open_codes(tmp_path / "codes")


def test_headers_of_shards_are_parsed_one_at_a_time(tokenizer, images, tmp_path, monkeypatch):
    """Before Python 3.11.9 two parsers at once disturb each other, and a sound shard looked damaged."""
    encode_to_shards(tokenizer, images, tmp_path / "codes", shard_pictures=1)
    load, under_way, most = np.load, [], []

    def watched(path, **options):
        under_way.append(path)
        most.append(len(under_way))
        time.sleep(0.01)
        under_way.remove(path)
        return load(path, **options)

    monkeypatch.setattr(np, "load", watched)
    open_codes(tmp_path / "codes")
    assert len(most) == 1 + len(images)  # labels and shards
    assert max(most) == 1
