"""Fashion-MNIST from small IDX files."""

import gzip
import pickle
import struct

import numpy as np
import pytest

from aimamba.data import fashion_mnist
from aimamba.data.fashion_mnist import CLASS_NAMES, FashionMNIST
from aimamba.data.sets import ImageSet, open_images
from aimamba.errors import ConfigError, DataError
from refusals import one_line_error

PIXELS = np.random.default_rng(0).integers(1, 256, (25, 28, 28), np.uint8)
LABELS = np.array([*range(10), *range(9, -1, -1), 3, 3, 3, 0, 0], np.uint8)


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder, prefix, pixels, labels, *, packed=True):
    folder.mkdir(exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte", pixels), (f"{prefix}-labels-idx1-ubyte", labels)):
        content = gzip.compress(idx(array)) if packed else idx(array)
        (folder / f"{name}{'.gz' * packed}").write_bytes(content)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """The machine's own copy, if there is one, is out of sight."""
    monkeypatch.setattr(fashion_mnist, "_DEBIAN", tmp_path / "debian")
    monkeypatch.delenv("AIMAMBA_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "files", "train", PIXELS, LABELS)
    write(tmp_path / "files", "t10k", 255 - PIXELS[:10], LABELS[:10], packed=False)
    return tmp_path / "files"


def test_grey_pixels_in_the_middle_of_32_black_ones(folder):
    images = FashionMNIST(folder)
    assert isinstance(images, ImageSet)
    assert (len(images), images.size, images.class_names) == (25, 32, CLASS_NAMES)
    assert images.labels.tolist() == LABELS.tolist()
    image = images.image(7)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert all(np.array_equal(image[2:30, 2:30, channel], PIXELS[7]) for channel in range(3))
    assert image.sum() == 3 * PIXELS[7].sum(dtype=int)
    assert np.array_equal(FashionMNIST(folder, size=28).image(7)[..., 1], PIXELS[7])


def test_the_test_images_are_held_out(folder):
    held_out = FashionMNIST(folder, split="held-out", size=28)
    assert len(held_out) == 10
    assert np.array_equal(held_out.image(4)[..., 0], 255 - PIXELS[4])


def test_the_first_of_each_class(folder):
    images = FashionMNIST(folder, per_class=3, size=28)
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 23]
    assert images.labels.tolist() == LABELS[kept].tolist()
    assert np.array_equal(images.image(21)[..., 0], PIXELS[23])


def test_a_random_view_is_mirrored_if_asked(folder):
    plain = FashionMNIST(folder).image(2)
    views = [FashionMNIST(folder, flip=True).image(2, np.random.default_rng(seed)) for seed in range(20)]
    mirrored = [bool((view == plain[:, ::-1]).all()) for view in views]
    assert 4 < sum(mirrored) < 16
    assert all(np.array_equal(view, plain) for view, turned in zip(views, mirrored, strict=True) if not turned)
    assert np.array_equal(FashionMNIST(folder, flip=True).image(2), plain)
    assert np.array_equal(FashionMNIST(folder).image(2, np.random.default_rng(0)), plain)
    with pytest.raises(IndexError, match="image 25 of 25"):
        FashionMNIST(folder).image(25)


def test_by_its_name(folder, tmp_path, monkeypatch):
    images = open_images(f"fashion-mnist:{folder}", size=32, split="train", per_class=1, flip=True)
    assert isinstance(images, FashionMNIST)
    assert len(images) == 10
    assert not np.array_equal(images.image(0, np.random.default_rng(2)), images.image(0))
    with pytest.raises(DataError, match=r"not in \S*debian: install Debian's package dataset-fashion-mnist, or get"):
        open_images("fashion-mnist", size=32, split="train")
    write(tmp_path / "debian", "train", PIXELS[:3], LABELS[:3])
    assert len(open_images("fashion-mnist", size=32, split="train")) == 3
    monkeypatch.setenv("AIMAMBA_DATA", str(tmp_path))
    folder.rename(tmp_path / "fashion-mnist")
    assert len(open_images("fashion-mnist", size=32, split="held-out")) == 10
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        open_images("fashion_mnist", size=32, split="train")


def test_it_travels_to_other_processes(folder):
    images = pickle.loads(pickle.dumps(FashionMNIST(folder)))
    assert np.array_equal(images.image(9), FashionMNIST(folder).image(9))


def missing(folder):
    (folder / "train-labels-idx1-ubyte.gz").unlink()


def cut_short(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-2000])


def not_packed(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(PIXELS))


def cut_short_inside(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(idx(PIXELS)[:-1])


def foreign(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(b"an image of a cat")


def header_alone(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(idx(PIXELS)[:10])


def labels_for_pictures(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(idx(LABELS))


def other_images(folder):
    write(folder, "train", PIXELS[:, :20], LABELS, packed=False)


def fewer_labels(folder):
    write(folder, "train", PIXELS, LABELS[:-1], packed=False)


def letters(folder):
    write(folder, "train", PIXELS, LABELS + 1, packed=False)


HARM = {
    missing: "there is no train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz",
    cut_short: "train-images-idx3-ubyte.gz: cannot be read, perhaps cut short",
    not_packed: "train-images-idx3-ubyte.gz: cannot be read, perhaps cut short",
    cut_short_inside: "train-images-idx3-ubyte: holds 19,599 bytes, but its header announces 25 x 28 x 28",
    foreign: "this is not an IDX file of bytes with 3 axes",
    header_alone: "this is not an IDX file of bytes with 3 axes",
    labels_for_pictures: "this is not an IDX file of bytes with 3 axes",
    other_images: "its images are 20 x 28, not 28 x 28",
    fewer_labels: "24 labels for 25 images",
    letters: "labels must lie in 0 to 9",
}


@pytest.mark.parametrize("harm", HARM)
def test_damage_is_refused_with_a_way_out(folder, harm):
    harm(folder)
    with one_line_error(DataError) as caught:
        FashionMNIST(folder)
    assert HARM[harm] in str(caught.value)
    assert "dataset-fashion-mnist" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 64}, "Fashion-MNIST has images of 32 pixels, or 28 without a margin; got 64"),
        ({"split": "all"}, "Fashion-MNIST has no split 'all'; use train or held-out"),
        ({"per_class": 0}, "per_class must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(folder, wrong, says):
    with pytest.raises(ConfigError, match=says):
        FashionMNIST(folder, **wrong)


def test_identity(folder):
    about = FashionMNIST(folder, split="held-out", per_class=1).identity
    assert about["fashion-mnist"] == [32, "held-out", 1]
    assert about == FashionMNIST(folder, split="held-out", per_class=1).identity
    for options in ({}, {"size": 28}, {"per_class": 1}, {"split": "held-out"}):
        assert FashionMNIST(folder, **options).identity != about
    write(folder, "t10k", PIXELS[:10], LABELS[:10], packed=False)
    assert FashionMNIST(folder, split="held-out", per_class=1).identity != about
