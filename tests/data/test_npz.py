"""ADM's files: images in a stream, and what is refused."""

import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from aimamba.data.npz import write_npz
from aimamba.data.sets import open_source
from aimamba.errors import DataError
from refusals import one_line_error


def test_what_is_written_is_what_numpy_reads(tmp_path, pixels):
    images, labels = pixels(7), np.arange(7)
    write_npz(tmp_path / "s.npz", iter([images[:4], images[4:]]), labels, 8)
    with np.load(tmp_path / "s.npz") as content:
        assert content.files == ["arr_0", "arr_1"]
        assert content["arr_0"].dtype == np.uint8
        assert_array_equal(content["arr_0"], images)
        assert_array_equal(content["arr_1"], labels)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_in_a_stream(tmp_path, pixels, save):
    images = pixels(7)
    save(tmp_path / "s.npz", arr_0=images, arr_1=np.arange(7)[::-1])
    source = open_source(str(tmp_path / "s.npz"))
    assert (len(source), source.size, source.class_names, source.statistics) == (7, 8, (), None)
    assert_array_equal(np.concatenate(list(source.batches(3))), images)
    assert_array_equal(source.take([5, 0, 5]), images[[5, 0, 5]])
    assert source.labels.tolist() == [6, 5, 4, 3, 2, 1, 0]


def test_a_file_of_statistics_has_no_images(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(2), sigma=np.eye(2))
    source = open_source(str(tmp_path / "s.npz"))
    assert (len(source), list(source.batches(3))) == (0, [])


def test_an_interrupted_file_is_absent(tmp_path, pixels):
    def batches():
        yield pixels(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_npz(tmp_path / "s.npz", batches(), np.arange(4), 8)
    assert not list(tmp_path.glob("*.npz"))
    assert not list(tmp_path.glob(".*npz*"))


def test_memory_stays_bounded(tmp_path):
    batch = np.zeros((10, 64, 64, 3), np.uint8)  # 123 kB
    tracemalloc.start()
    write_npz(tmp_path / "s.npz", (batch for _ in range(200)), np.zeros(2000, np.int64), 64)
    assert sum(len(images) for images in open_source(str(tmp_path / "s.npz")).batches(10)) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # of 25 MB


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((3, 8, 8, 3), np.float32)}, "arr_0 holds float32 of shape .* expected .* uint8"),
        ({"arr_0": np.zeros((3, 3, 8, 8), np.uint8)}, "expected square images"),
        ({"arr_0": np.zeros((3, 8, 9, 3), np.uint8)}, "expected square images"),
        ({"arr_0": np.asfortranarray(np.zeros((3, 8, 8, 3), np.uint8))}, "column by column"),
        ({"other": np.zeros(3)}, "holds other; expected arr_0, or mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu and sigma have shapes \(3,\) and \(4, 4\)"),
    ],
)
def test_refusals(tmp_path, content, message):
    np.savez(tmp_path / "s.npz", **content)
    with one_line_error(DataError, match=message):
        open_source(str(tmp_path / "s.npz"))


def test_damaged_files(tmp_path, pixels):
    path = tmp_path / "s.npz"
    np.savez(path, arr_0=pixels(50))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="not a readable"):
        open_source(str(path))
    place = whole.index(b"PK\x01\x02") + 8  # flags of the directory's entry
    path.write_bytes(whole[:place] + bytes([whole[place] | 1]) + whole[place + 1 :])  # wants a password
    with pytest.raises(DataError, match=r"s\.npz"):
        list(open_source(str(path)).batches(20))
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(DataError, match="arr_0 is damaged"):
        list(open_source(str(path)).batches(20))


def member(header, content=b""):
    """An array file with any header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("arr_1", member(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}\n"), "announces"),
        ("arr_1", member(b"{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}\n"), "shape"),
        ("arr_0", member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-3, 8, 8, 3)}\n"), "shape"),
        ("arr_0", member(b"{'descr': '|u1', 'fortran_order': False, 'shape': ((((((("), "not a readable"),
        ("arr_0", member(b"(" * 5000), "not a readable"),
        (
            "arr_0",
            member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 8, 8, 3)}\n"),
            "more than there are",
        ),
        (
            "arr_0",
            member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (3, 0, 0, 3)}\n"),
            "expected square images",
        ),
        ("mu", member(b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}\n", bytes(8)), "numbers"),
        ("mu", member(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", bytes(8)), "expected numbers"),
        ("mu", member(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}\n", b"\xff" * 8), "not finite"),
    ],
)
def test_hostile_headers(tmp_path, pixels, name, content, message):
    arrays = {"arr_0": pixels(3), "arr_1": np.arange(3), "mu": np.zeros(1), "sigma": np.eye(1)}
    np.savez(tmp_path / "whole.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "s.npz", "w") as changed:
        for part in whole.namelist():
            changed.writestr(part, content if part == f"{name}.npy" else whole.read(part))
    with one_line_error(DataError, match=message) as caught:
        open_source(str(tmp_path / "s.npz"))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_false_length_in_the_archive_is_not_believed(tmp_path, method):
    path, announced = tmp_path / "s.npz", 1000 * 64 * 64 * 3
    header = member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000, 64, 64, 3)}\n")
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("arr_0.npy", header)
    whole = path.read_bytes()
    length = len(header).to_bytes(4, "little")
    place = whole.rindex(length)  # in the directory at the end
    path.write_bytes(whole[:place] + (announced + len(header)).to_bytes(4, "little") + whole[place + 4 :])
    with one_line_error(DataError, match="not a readable .npz file .arr_0 announces 12.3 MB, more than there are"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("labels", "held"),
    [
        (np.arange(4), r"int64 of shape \(4,\)"),
        (np.zeros((3, 1), np.int64), r"int64 of shape \(3, 1\)"),
        (np.array([0.0, np.nan, 1.0]), r"float64 of shape \(3,\)"),
        (np.array([0, -1, 2]), r"int64 of shape \(3,\) from -1 to 2"),
        (np.array([0, 1 << 62, 2]), r"int64 of shape \(3,\) from 0 to 4611686018427387904"),
    ],
)
def test_labels_that_are_none(tmp_path, pixels, labels, held):
    np.savez(tmp_path / "s.npz", arr_0=pixels(3), arr_1=labels)
    message = f"s.npz: arr_1 holds {held}; expected the class of each of the 3 images, whole numbers"
    with one_line_error(DataError, match=message):
        open_source(str(tmp_path / "s.npz"))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_compression(tmp_path, pixels, method):
    path = tmp_path / "s.npz"
    np.savez(tmp_path / "whole.npz", arr_0=pixels(50))
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("arr_0.npy", whole.read("arr_0.npy"))
    whole = path.read_bytes()
    for place in range(40, len(whole) - 200, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = np.concatenate(list(open_source(str(path)).batches(20)))
        except DataError:
            continue
        assert_array_equal(found, pixels(50), err_msg=f"byte {place}")  # as of a version number that nobody reads


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "s.npz")
    with pytest.raises(DataError, match="not a file"):
        open_source(str(tmp_path / "s.npz"))
