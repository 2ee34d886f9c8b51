"""TensorBoard's files, in particular after a run was stopped and continued."""

import json
import os
import signal
import sys

import pytest
from PIL import Image
from toy_task import ToyTask, settings

from aimamba.errors import ConfigError
from aimamba.train.fit import fit
from aimamba.train.interruption import Interrupted
from aimamba.train.tensorboard import TensorBoard


@pytest.fixture
def points():
    """All points of a run: the steps and values of each curve, and the steps of the sheets."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(out):
        events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
        events.Reload()
        curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        return curves, [image.step for image in events.Images("sheet")]

    return read


def expected(out):
    """The same from ``metrics.jsonl``."""
    curves = {}
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        for name in line.keys() - {"step", "split"}:
            curves.setdefault(f"{line['split']}/{name}", []).append((line["step"], pytest.approx(line[name], rel=1e-6)))
    return curves


def stopped_after(step):
    return ToyTask(lambda at: os.kill(os.getpid(), signal.SIGTERM) or 1.0 if at == step else 1.0)


def test_every_number_and_sheet_is_there(tmp_path, points):
    fit(ToyTask(), settings(log_every=1), tmp_path, tensorboard=True)
    curves, sheets = points(tmp_path)
    assert curves == expected(tmp_path)
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["held-out/loss"]] == [3, 6]
    assert sheets == [3, 6]


def test_by_default_no_files_are_written(tmp_path):
    fit(ToyTask(), settings(), tmp_path)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("step", [3, 4])
def test_after_a_resume_every_point_is_there_once(tmp_path, points, first, step):
    with pytest.raises(Interrupted):
        fit(stopped_after(step), settings(log_every=1), tmp_path, tensorboard=first)
    fit(ToyTask(), settings(log_every=1), tmp_path, tensorboard=True)
    curves, sheets = points(tmp_path)
    assert curves == expected(tmp_path)
    assert [at for at, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert sheets == [3, 6]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path, points):
    (tmp_path / "sheets").mkdir()
    for step in (2, 4, 6):
        Image.new("L", (2, 2)).save(tmp_path / "sheets" / f"step-{step:06d}.png")
    TensorBoard(tmp_path, step=4).close()
    assert points(tmp_path) == ({}, [2])


def test_files_can_be_written_after_the_run(tmp_path, points):
    fit(ToyTask(), settings(), tmp_path)
    task = ToyTask()
    fit(task, settings(), tmp_path, tensorboard=True)
    assert task.positions == []
    assert points(tmp_path) == (expected(tmp_path), [3, 6])


def test_past_points_keep_their_distance_in_time(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [{"step": 1, "split": "train", "seconds": 10.0}, {"step": 2, "split": "train", "seconds": 70.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    TensorBoard(tmp_path, step=2).close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    first, second = events.Scalars("train/seconds")
    assert second.wall_time - first.wall_time == pytest.approx(60)


def test_a_number_that_is_not_finite_leaves_a_gap(tmp_path, points):
    board = TensorBoard(tmp_path, step=0)
    board.write(1, "train", {"loss": float("nan"), "lr": 0.5, "other": None})
    board.sheet(1, Image.new("RGB", (2, 2)))
    board.close()
    assert points(tmp_path) == ({"train/lr": [(1, 0.5)]}, [1])


def test_a_missing_package_is_reported_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'aimamba\[tensorboard\]', or leave out"):
        fit(lambda: pytest.fail("prepared"), settings(), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
