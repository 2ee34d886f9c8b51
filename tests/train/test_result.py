"""A run that is killed, or loses its power, while its result is written or replaced."""

import itertools
import os
import shutil

import pytest
import torch
from toy_task import ToyTask, settings

from aimamba.errors import ConfigError
from aimamba.train.fit import fit
from aimamba.train.result import save_result

CALLS = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir")


class KilledError(BaseException):
    """What the process was going to do next is not done."""


@pytest.fixture
def kill(monkeypatch):
    """Make a number of calls of the operating system succeed, then fail them all, as in a process that is dead."""

    def after(number: int, count: list[int]) -> None:
        def watched(call):
            def call_or_die(*arguments, **options):
                count[0] += 1
                if count[0] > number:
                    raise KilledError
                return call(*arguments, **options)

            return call_or_die

        for name in CALLS:
            monkeypatch.setattr(os, name, watched(getattr(os, name)))

    return after


def weights(out) -> dict:
    return torch.load(out / "model" / "weights.pt")


def listed(folder) -> set[str]:
    return set(os.listdir(folder)) if folder.exists() else set()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of six steps, and the same one extended to nine."""
    folder = tmp_path_factory.mktemp("runs")
    fit(ToyTask(), settings(schedule="constant"), folder / "six")
    shutil.copytree(folder / "six", folder / "nine")
    fit(ToyTask(), settings(schedule="constant", steps=9), folder / "nine")
    return folder


def test_a_kill_at_any_call_while_a_result_is_replaced(tmp_path, runs, kill, monkeypatch):
    longer = settings(schedule="constant", steps=9)
    for number in itertools.count():
        out, count = tmp_path / str(number), [0]
        shutil.copytree(runs / "nine", out)
        shutil.rmtree(out / "model")
        shutil.copytree(runs / "six" / "model", out / "model")  # nine steps are taken, the model is that of six
        with monkeypatch.context(), torch.no_grad():
            kill(number, count)
            try:
                save_result(out, "", lambda folder: torch.save({}, folder / "weights.pt"))
            except KilledError:
                pass
            finally:
                monkeypatch.undo()
        complete = [name for name in ("model", "model.old") if {"weights.pt", "recipe.toml"} <= listed(out / name)]
        assert complete, "a complete result stays on the disk at every moment"
        task = ToyTask()
        fit(task, longer, out)
        assert task.positions == [], "no step is taken again"
        torch.testing.assert_close(weights(out), weights(runs / "nine"), rtol=0, atol=0)
        assert (out / "model" / "recipe.toml").read_text() == (runs / "nine" / "model" / "recipe.toml").read_text()
        assert {path.name for path in out.iterdir()} == {path.name for path in (runs / "nine").iterdir()}
        if count[0] <= number:
            break
    assert number >= 8


@pytest.mark.parametrize("marker", [None, "", "fit = 1", "[fit]\nsteps = '6'", "\0\0\0"])
def test_a_damaged_marker_is_repaired_from_the_checkpoint(tmp_path, runs, marker, capsys):
    for steps, name in ((6, "six"), (9, "nine")):
        out = tmp_path / name
        shutil.copytree(runs / "six", out)
        path = out / "model" / "recipe.toml"
        path.unlink() if marker is None else path.write_text(marker)
        fit(ToyTask(), settings(schedule="constant", steps=steps), out)
        assert path.read_text() == (runs / name / "model" / "recipe.toml").read_text()
        torch.testing.assert_close(weights(out), weights(runs / name), rtol=0, atol=0)
        assert ("is damaged" in capsys.readouterr().err) == (marker is not None)


def test_a_damaged_marker_without_a_checkpoint_is_an_error(tmp_path, runs):
    shutil.copytree(runs / "six", tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    (tmp_path / "run" / "model" / "recipe.toml").write_text("")
    with pytest.raises(ConfigError, match=r"recipe.toml is damaged and there is no checkpoint.pt to repair it from"):
        fit(ToyTask(), settings(schedule="constant"), tmp_path / "run")


def test_an_old_result_that_a_killed_process_left_is_removed(tmp_path, runs):
    shutil.copytree(runs / "six", tmp_path / "run")
    (tmp_path / "run" / "model.old").mkdir()
    fit(ToyTask(), settings(schedule="constant"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.old").exists()
