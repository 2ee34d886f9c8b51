"""What a sharded checkpoint of two processes guarantees: nothing is executed, nothing damaged is taken for whole."""

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
from ranks import together
from ranks_task import settings, train
from torch.testing import assert_close

from aimamba.checkpoints.sums import SUMS_KEY, sum_of_file, sum_of_values
from aimamba.errors import CheckpointError
from aimamba.train.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, write_checkpoint
from aimamba.train.checkpoint_files import checkpoint_files, remove_superfluous
from aimamba.train.fit import fit
from aimamba.train.parallel.shards import ShardReader
from tests.refusals import one_line_error


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The checkpoint of two processes after four steps."""
    folder = tmp_path_factory.mktemp("sharded")
    together(2, train, "generator", folder / "run", (1, 2), {"steps": 4}, logs=folder)
    return folder / "run/checkpoint-000004.dcp"


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / written.name)


def sign(folder: Path) -> None:
    """Make the checksums those of the files, as someone would who changes them on purpose."""
    values = json.loads((folder / "state.json").read_text())
    values["files"] = {name: sum_of_file(folder / name) for name in values["files"]}
    values[SUMS_KEY] = sum_of_values(values)
    (folder / "state.json").write_text(json.dumps(values))


@contextlib.contextmanager
def described(folder: Path) -> Iterator[Any]:
    """Yield the description of the shards, to change it; it is written and signed again."""
    metadata = ShardReader(folder).read_metadata()
    yield metadata
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(folder)


@contextlib.contextmanager
def listed(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of state.json, to change it; it is written and signed again."""
    values = json.loads((folder / "state.json").read_text())
    yield values
    (folder / "state.json").write_text(json.dumps(values))
    sign(folder)


def test_each_process_writes_its_half(written):
    names = {path.name for path in written.iterdir()}
    assert names == {"__0_0.distcp", "__1_0.distcp", ".metadata", "rest.pt", "state.json"}
    sizes = [(written / f"__{rank}_0.distcp").stat().st_size for rank in range(2)]
    assert max(sizes) < 1.2 * min(sizes)
    saved = read_checkpoint(written)
    assert type(saved) is Checkpoint
    assert saved.step == 4
    assert {"model", "optimizer", "average", "best", "means"} <= saved.parts.keys()
    assert all(tensor.isfinite().all() for tensor in saved.parts["average"]["model"].values())


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", ".metadata", "rest.pt", "state.json"])
def test_a_flipped_bit_is_found_in_every_file(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with one_line_error(CheckpointError, f"checkpoint-000004.dcp is .*; delete {copied.name} to start over"):
        read_checkpoint(copied)


@pytest.mark.parametrize("name", ["__1_0.distcp", ".metadata", "rest.pt"])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with one_line_error(CheckpointError, f"is damaged: {name} is missing"):
        read_checkpoint(copied)


def test_a_folder_without_its_manifest_does_not_let_a_run_begin_anew(copied):
    (copied / "state.json").unlink()
    with one_line_error(CheckpointError, r"checkpoint-000004.dcp is not a whole checkpoint \(FileNotFoundError\)"):
        newest_checkpoint(copied.parent)


@pytest.mark.parametrize("name", ["__1_0.distcp", ".metadata", "rest.pt"])
def test_every_file_has_a_checksum(copied, name):
    with listed(copied) as values:
        del values["files"][name]
    with one_line_error(CheckpointError, f"state.json does not list {name}"):
        read_checkpoint(copied)


def test_shards_that_leave_a_part_out_are_refused(copied):
    """It would stay as it happens to be in memory."""
    with described(copied) as metadata:
        entry = next(entry for entry in metadata.state_dict_metadata.values() if len(entry.chunks) > 1)
        entry.chunks.pop()
    with one_line_error(CheckpointError, "the shards do not make up all of"):
        read_checkpoint(copied)


def test_a_shard_that_fails_in_reading_is_one_line(copied):
    """PyTorch's error is no ``Exception``."""
    (copied / "__1_0.distcp").write_bytes(b"")
    sign(copied)
    with one_line_error(CheckpointError, "checkpoint-000004.dcp cannot be read"):
        read_checkpoint(copied)


@pytest.mark.parametrize("basis", [None, [], {"codes": 5}])
def test_inputs_of_another_type_are_refused(copied, basis):
    with listed(copied) as values:
        values["basis"] = basis
    with one_line_error(CheckpointError, "its field basis has another type"):
        read_checkpoint(copied)


def test_a_description_cannot_change_a_class(copied):
    hostile = b"\x80\x04cpathlib\nPosixPath\nN}(\x8c\x07iterdirccollections\nOrderedDict\nu\x86b."
    (copied / ".metadata").write_bytes(hostile)
    sign(copied)
    before = PosixPath.iterdir
    try:
        with one_line_error(CheckpointError, "checkpoint-000004.dcp cannot be read"):
            read_checkpoint(copied)
        assert PosixPath.iterdir is before
    finally:
        PosixPath.iterdir = before


def test_folders_of_others_and_links_are_not_removed(copied, tmp_path):
    foreign, link = tmp_path / "checkpoint-000009.dcp", tmp_path / "checkpoint-000002.dcp"
    foreign.mkdir()
    (foreign / "state.json").write_text('{"mine": 1}')
    link.symlink_to(copied)
    remove_superfluous(tmp_path, tmp_path / "checkpoint.pt", 5, 1)
    assert {path.name for path in tmp_path.iterdir()} == {foreign.name, link.name}, "only our own one"
    assert (foreign / "state.json").exists()


def test_a_shard_of_another_checkpoint_is_found(copied):
    shutil.copy(copied / "__0_0.distcp", copied / "__1_0.distcp")
    with one_line_error(CheckpointError, "the checksum of __1_0.distcp does not match"):
        read_checkpoint(copied)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_description_is_executed(copied, tmp_path):
    (copied / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    sign(copied)
    with one_line_error(CheckpointError, r"cannot be read \(UnpicklingError: (posix|nt|os).mkdir is not allowed\)"):
        read_checkpoint(copied)
    assert not (tmp_path / "made").exists()


def test_an_entry_that_torch_would_unpickle_is_refused(copied):
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    with described(copied) as metadata:
        name = next(iter(metadata.state_dict_metadata))
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
    with one_line_error(CheckpointError, "holds something else than tensors"):
        read_checkpoint(copied)


def test_a_shard_outside_the_folder_is_refused(copied):
    with described(copied) as metadata:
        stored = next(iter(metadata.storage_data.values()))
        object.__setattr__(stored, "relative_path", "../elsewhere")
    with one_line_error(CheckpointError, "a shard lies outside the folder"):
        read_checkpoint(copied)


def test_tensors_larger_than_the_files_are_refused(copied):
    with described(copied) as metadata:
        entry = next(iter(metadata.state_dict_metadata.values()))
        entry.size = torch.Size([1 << 40])
    with one_line_error(CheckpointError, "its tensors are larger than its files"):
        read_checkpoint(copied)


@pytest.mark.parametrize(
    ("step", "order"),
    [(3, ["checkpoint-000004.dcp", "checkpoint.pt"]), (5, ["checkpoint.pt", "checkpoint-000004.dcp"])],
)
def test_the_newest_of_both_kinds_is_the_one_with_most_steps(copied, tmp_path, step, order):
    other = Checkpoint(step=step, seconds=0.0, recipe="", parts={})
    (tmp_path / "other").mkdir()
    write_checkpoint(tmp_path / "other/checkpoint.pt", other)
    (tmp_path / "other/checkpoint.pt").rename(tmp_path / "checkpoint.pt")  # as after a kill between two removals
    assert [path.name for path in checkpoint_files(tmp_path)] == order


def test_a_newer_checkpoint_of_one_process_replaces_a_folder(copied, tmp_path):
    write_checkpoint(tmp_path / "checkpoint.pt", Checkpoint(step=5, seconds=0.0, recipe="", parts={}))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_state_is_that_of_one_process(written, tmp_path):
    from ranks_task import Generator

    fit(Generator(), settings(steps=4), tmp_path / "one")
    one, many = read_checkpoint(tmp_path / "one/checkpoint.pt").parts, read_checkpoint(written).parts
    assert one.keys() == many.keys()
    for name in ("model", "average", "optimizer"):
        assert_close(many[name], one[name], rtol=0, atol=2e-4)
