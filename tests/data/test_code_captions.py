"""Captions that are kept with codes: aligned when an encoding is interrupted or damaged, or an image is broken."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from aimamba.data.code_sums import read_sums
from aimamba.data.codes import CodeSet, encode_images
from aimamba.data.encoding import encode_to_shards
from aimamba.data.folder import BrokenImageWarning, ImageFolder
from aimamba.data.shards import open_codes
from aimamba.errors import DataError
from aimamba.models import VQConfig, VQModel
from tests.refusals import one_line_error

SHAPE = VQConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=8, norm_groups=4, codebook_size=24)
COUNT = 23


class Tokenizer(VQModel):
    """Stops when it has encoded so many images."""

    def __init__(self, after: int = 1000) -> None:
        super().__init__(SHAPE)
        self.init_weights(torch.Generator().manual_seed(0))
        self.eval()
        self.after, self.count = after, 0

    def encode(self, images):
        if self.count >= self.after:
            raise KeyboardInterrupt
        self.count += len(images)
        return super().encode(images)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(COUNT):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(root / f"{number:02d}.png")
        (root / f"{number:02d}.txt").write_text(f"number {number}\nthe same {number}")
    return root


def opened(root):
    return ImageFolder(root, size=8, split="all")


def encode(images, folder, tokenizer=None):
    return encode_to_shards(tokenizer or Tokenizer(), images, folder, batch_size=4, shard_pictures=10)


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_each_code_has_the_captions_of_its_image(photos, tmp_path):
    images = opened(photos)
    assert encode(images, tmp_path / "codes").captions
    _, codes = open_codes(tmp_path / "codes")
    in_memory = encode_images(Tokenizer(), images, batch_size=4)
    for index in range(COUNT):
        assert codes.captions[index] == in_memory.captions[index] == (f"number {index}", f"the same {index}")
    assert codes.fingerprint() == in_memory.fingerprint()
    assert codes.fingerprint() != CodeSet(codes.shards, codes.labels).fingerprint()
    assert codes.relabelled([0]).captions[5] == codes.captions[5]
    lines = (tmp_path / "codes" / "captions.jsonl").read_text().splitlines()
    assert json.loads(lines[7]) == ["number 7", "the same 7"]


def test_batches_hold_the_caption_of_each_code(photos, tmp_path):
    encode(opened(photos), tmp_path / "codes")
    _, codes = open_codes(tmp_path / "codes")
    known = {codes.take([index], [0]).numpy().tobytes(): index for index in range(COUNT)}

    def read(texts):
        return torch.tensor([[int(text.split()[-1]), text.startswith("the")] for text in texts])

    first = next(codes.captioned_batches(read, batch_size=COUNT, seed=3))
    assert [known[row.numpy().tobytes()] for row in first.codes] == first.captions[:, 0].tolist()
    assert first.captions[:, 1].unique().tolist() == [0, 1]
    later = next(codes.captioned_batches(read, batch_size=5, seed=3, start=7))
    assert torch.equal(later.captions, first.captions[7:12])


def test_an_interrupted_encoding_ends_with_the_same_bytes(photos, tmp_path):
    encode(opened(photos), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encode(opened(photos), tmp_path / "codes", Tokenizer(after=12))
    assert not (tmp_path / "codes" / "captions.jsonl").exists()
    with one_line_error(DataError, "missing or cut short"):
        open_codes(tmp_path / "codes")
    encode(opened(photos), tmp_path / "codes")
    assert bytes_of(tmp_path / "codes") == bytes_of(tmp_path / "whole")


def test_a_broken_image_has_the_codes_and_the_captions_of_another_for_good(photos, tmp_path):
    folder = tmp_path / "codes"
    for number in (2, 22):
        path = photos / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.warns(BrokenImageWarning), pytest.raises(KeyboardInterrupt):
        encode(opened(photos), folder, Tokenizer(after=12))
    with pytest.warns(BrokenImageWarning, match="22.png"):
        encode(opened(photos), folder)
    expected = {2: 3, 22: 0}
    for again in range(2):  # the second time nothing is encoded, so nothing is found broken
        _, codes = open_codes(folder)
        for index in range(COUNT):
            other = expected.get(index, index)
            assert codes.captions[index] == (f"number {other}", f"the same {other}"), again
            assert torch.equal(codes.take([index], [0]), codes.take([other], [0]))
        before = bytes_of(folder)
        encode(opened(photos), folder, Tokenizer(after=0))
        assert bytes_of(folder) == before
    assert json.loads(before["replaced.json"]) == [[2, 3], [22, 0]]
    (folder / "replaced.json").write_text("[3]")
    with one_line_error(DataError, "replaced.json: damaged"):
        encode(opened(photos), folder)


def test_captions_that_change_are_written_again_without_encoding(photos, tmp_path):
    folder = tmp_path / "codes"
    encode(opened(photos), folder)
    (photos / "05.txt").write_text("changed")
    encode(opened(photos), folder, Tokenizer(after=0))
    assert open_codes(folder)[1].captions[5] == ("changed",)


def test_codes_without_captions_are_as_before_and_can_get_some(photos, tmp_path):
    class Plain:
        class_names, size = ("images",), 8
        labels = np.zeros(COUNT, np.int64)

        def __len__(self):
            return COUNT

        def image(self, index, rng=None):
            return opened(photos).image(index)

    folder = tmp_path / "codes"
    assert not encode(Plain(), folder).captions
    _, codes = open_codes(folder)
    assert codes.captions is None
    assert not (folder / "captions.jsonl").exists()
    old = json.loads((folder / "meta.json").read_text())
    del old["captions"]  # as earlier versions wrote it
    (folder / "meta.json").write_text(json.dumps(old))
    (folder / "sums.json").unlink()
    assert open_codes(folder)[1].captions is None

    class Captioned(Plain):
        captioned = True

        def captions(self, index):
            return (f"about {index}",)

    assert encode(Captioned(), folder, Tokenizer(after=0)).captions
    assert open_codes(folder)[1].captions[COUNT - 1] == (f"about {COUNT - 1}",)
    assert not encode(Plain(), folder, Tokenizer(after=0)).captions
    assert open_codes(folder)[1].captions is None
    assert not (folder / "captions.jsonl").exists()


def test_damaged_captions_are_found(photos, tmp_path):
    folder = tmp_path / "codes"
    encode(opened(photos), folder)
    path = folder / "captions.jsonl"
    good = path.read_bytes()
    assert "captions.jsonl" in read_sums(folder)
    path.write_bytes(good.replace(b"number 3", b"number 4"))
    with one_line_error(DataError, "captions.jsonl: damaged, or not what was encoded"):
        open_codes(folder)
    path.write_bytes(good[:-10])
    with one_line_error(DataError, "cut short"):
        open_codes(folder)
    path.unlink()
    with one_line_error(DataError, "captions.jsonl: the captions cannot be read"):
        open_codes(folder)
    encode(opened(photos), folder, Tokenizer(after=0))
    assert path.read_bytes() == good
    (folder / "sums.json").unlink()
    path.write_bytes(good.partition(b"\n")[2])
    with one_line_error(DataError, f"{COUNT} images and {COUNT - 1}"):
        open_codes(folder)
