import os
import pickle
import signal
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from aimamba.checkpoints.weights import read_tensors
from aimamba.errors import CheckpointError, ConfigError
from aimamba.train.checkpoint import (
    Checkpoint,
    check_same_basis,
    check_same_recipe,
    find_checkpoint,
    read_checkpoint,
    restore,
    write_checkpoint,
)
from aimamba.train.checkpoint_files import checkpoint_files
from aimamba.train.interruption import Interruption
from aimamba.train.toml import to_toml
from refusals import one_line_error


def checkpoint(**changes) -> Checkpoint:
    parts = {"model": nn.Linear(2, 2).state_dict()}
    return Checkpoint(**{"step": 3, "seconds": 1.5, "recipe": "stage = 'toy'", "parts": parts, **changes})


def test_what_is_written_is_read(tmp_path):
    path, written = tmp_path / "checkpoint.pt", checkpoint()
    write_checkpoint(path, written)
    read = read_checkpoint(path)
    assert (read.step, read.seconds, read.recipe) == (3, 1.5, "stage = 'toy'")
    torch.testing.assert_close(read.parts, written.parts, rtol=0, atol=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, checkpoint())

    def full(_handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(path, checkpoint(step=4))
    assert read_checkpoint(path).step == 3


@pytest.mark.parametrize("length", [0, 10, 500, -1])
def test_a_truncated_file_is_one_line_that_says_how_to_fix_it(tmp_path, length):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:length])
    with one_line_error(CheckpointError, match=r"cannot be read .* delete checkpoint\.pt to start over, or"):
        read_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "checkpoint.pt")
    with one_line_error(CheckpointError, match="is not a file"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_an_archive_that_grows_when_it_is_read_is_refused(tmp_path):
    path, packed = tmp_path / "checkpoint.pt", tmp_path / "packed.pt"
    write_checkpoint(path, Checkpoint(step=1, seconds=1.0, recipe="", parts={"model": {"w": torch.zeros(100_000)}}))
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    read_checkpoint(path)
    with one_line_error(CheckpointError, match="cannot be read"):
        read_checkpoint(packed)
    with one_line_error(CheckpointError, match="cannot be read"):
        read_tensors(packed)


def test_a_foreign_file_is_refused(tmp_path):
    path: Path = tmp_path / "checkpoint.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of a training run"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)
    path.write_text("an image of a cat")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"format": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "sprung").exists()


def test_the_state_of_another_model_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for part in (nn.Linear(3, 2), nn.Embedding(2, 2)):
        with one_line_error(CheckpointError, match=r"does not fit this model \(.*\); delete checkpoint\.pt"):
            restore(checkpoint(), {"model": part}, path)
    with pytest.raises(CheckpointError, match="does not fit this average"):
        restore(checkpoint(), {"average": nn.Linear(2, 2)}, path)


def test_steps_intervals_and_description_may_change(tmp_path):
    fit = {"steps": 5, "log_every": 1, "evaluate_every": 1, "sheet_every": 1, "checkpoint_every": 1, "lr": 0.1}
    before = {"description": "old", "fit": fit}
    now = {"description": "new", "fit": {name: value if name == "lr" else value + 1 for name, value in fit.items()}}
    before["fit"]["cuda_graph"], now["fit"]["cuda_graph"] = False, "auto"  # the default before 0.3, and since
    check_same_recipe(to_toml(before), to_toml(now), tmp_path, dict)
    with pytest.raises(ConfigError, match=r"fit\.lr 0\.1, now it is 0\.2"):
        check_same_recipe(to_toml(before), to_toml({"fit": {**fit, "lr": 0.2}}), tmp_path, dict)
    with pytest.raises(ConfigError, match=r"fit\.lr 0\.1, now it is not set"):
        check_same_recipe(to_toml(before), to_toml({"fit": {}}), tmp_path, dict)


def test_recipes_are_compared_with_all_their_settings(tmp_path):
    def resolve(recipe):
        if "colour" in recipe:
            raise ConfigError("unknown key 'colour'")
        return {"data": {"flip": False, **recipe.get("data", {})}}

    check_same_recipe("", to_toml({"data": {"flip": False}}), tmp_path, resolve)
    with pytest.raises(ConfigError, match=r"a run with data\.flip False, now it is True; set it back"):
        check_same_recipe("", to_toml({"data": {"flip": True}}), tmp_path, resolve)
    with pytest.raises(ConfigError, match=r"this version cannot continue \(unknown key 'colour'\); give another --out"):
        check_same_recipe("colour = 1", "", tmp_path, resolve)


def test_a_checkpoint_of_a_version_that_kept_no_basis(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, checkpoint(basis={"tokenizer": "abc"}))
    assert read_checkpoint(path).basis == {"tokenizer": "abc"}
    content = torch.load(path)
    del content["basis"]
    torch.save(content, path)
    assert read_checkpoint(path).basis == {}
    check_same_basis({}, {"tokenizer": "abc"}, tmp_path)
    check_same_basis({"tokenizer": "abc", "gone": "d"}, {"tokenizer": "abc"}, tmp_path)
    with pytest.raises(ConfigError, match=r"run on another tokenizer \(xyz\) than the one given \(abc\); give that"):
        check_same_basis({"tokenizer": "xyz"}, {"tokenizer": "abc"}, tmp_path)


@pytest.fixture
def sigint_as_on_a_terminal():
    """Restore SIGINT, which is ignored in a process that a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_as_on_a_terminal")
def test_a_second_signal_acts_at_once():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.received == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone():
    handler, entered = signal.getsignal(signal.SIGINT), []

    def enter() -> None:
        with Interruption() as interruption:
            entered.append(interruption.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [0]
    assert signal.getsignal(signal.SIGINT) is handler


def test_flipped_bits_are_noticed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, checkpoint(parts={"model": nn.Linear(64, 64).state_dict()}))
    whole = path.read_bytes()
    torch_weights = torch.load(path)["parts"]["model"]["weight"].numpy().tobytes()
    start = whole.index(torch_weights)
    for offset in (0, 1000, len(torch_weights) - 1):
        damaged = bytearray(whole)
        damaged[start + offset] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"is damaged: the checksum of its record .* delete checkpoint\.pt"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "changes", [{"step": "3"}, {"step": -1}, {"step": True}, {"seconds": "x"}, {"recipe": "no recipe"}, {"parts": []}]
)
def test_a_field_of_another_kind_is_one_line(tmp_path, changes):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, checkpoint())
    torch.save({**torch.load(path), **changes}, path)
    [name] = changes
    with one_line_error(CheckpointError, match=f"is not a checkpoint of a training run: its '{name}' is"):
        read_checkpoint(path)


class TestSeveral:
    """More than one checkpoint in a folder: the newest that can be read counts."""

    def write(self, out, steps, count=3):
        before = None
        for step in steps:
            write_checkpoint(out / "checkpoint.pt", checkpoint(step=step, recipe=""), count=count, before=before)
            before = step

    @pytest.mark.parametrize("links", [True, False])
    def test_the_newest_are_kept(self, tmp_path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
        self.write(tmp_path, [2, 4, 6, 8])
        assert [path.name for path in checkpoint_files(tmp_path)] == [
            "checkpoint.pt", "checkpoint-000006.pt", "checkpoint-000004.pt",
        ]  # fmt: skip
        assert [read_checkpoint(path).step for path in checkpoint_files(tmp_path)] == [8, 6, 4]
        write_checkpoint(tmp_path / "checkpoint.pt", checkpoint(step=10), count=1, before=8)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]

    def test_an_older_one_stands_in_for_a_damaged_one(self, tmp_path, capsys):
        self.write(tmp_path, [2, 4, 6])
        for path, step in zip(checkpoint_files(tmp_path), (4, 2), strict=False):
            path.write_bytes(path.read_bytes()[:-200])
            found = find_checkpoint(tmp_path, "", 9, dict)
            assert (found.checkpoint.step, found.path.name) == (step, f"checkpoint-{step:06d}.pt")
            printed = capsys.readouterr().err
            assert printed.count("\n") == 1
            assert printed.startswith(f"{tmp_path / 'checkpoint.pt'} cannot be read")
            assert printed.endswith(f"; going on from checkpoint-{step:06d}.pt, after step {step}\n")
        checkpoint_files(tmp_path)[2].write_bytes(b"")
        with one_line_error(CheckpointError, match=r"checkpoint\.pt cannot be read"):
            find_checkpoint(tmp_path, "", 9, dict)

    def test_one_of_steps_that_are_taken_again_goes(self, tmp_path):
        self.write(tmp_path, [2, 4, 6])
        write_checkpoint(tmp_path / "checkpoint.pt", checkpoint(step=3), count=3, before=None)
        assert [path.name for path in checkpoint_files(tmp_path)] == ["checkpoint.pt", "checkpoint-000002.pt"]

    def test_a_run_killed_between_two_renames_continues(self, tmp_path, capsys):
        self.write(tmp_path, [2, 4])
        (tmp_path / "checkpoint.pt").unlink()
        assert find_checkpoint(tmp_path, "", 9, dict).checkpoint.step == 2
        assert capsys.readouterr().err == ""
