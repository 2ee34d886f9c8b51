import io
import json
import math
import sys

import pytest
import torch

from aimamba.train.tracking import MetricsFile, Progress, RunningMeans, read_metrics


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_means_are_over_what_was_added_since_the_last_call():
    means = RunningMeans()
    means.add({"loss": torch.tensor(1.0), "time": 2.0})
    means.add({"loss": torch.tensor(4.0), "rare": 8.0})
    assert means.take() == {"loss": 2.5, "time": 2.0, "rare": 8.0}
    assert means.take() == {}


def test_means_do_not_hold_on_to_graphs():
    weight = torch.ones((), requires_grad=True)
    means = RunningMeans()
    means.add({"loss": weight * 2})
    assert not means.state_dict()["totals"]["loss"].requires_grad


def test_means_continue_exactly():
    values = [torch.tensor(value) for value in torch.rand(7, generator=torch.Generator().manual_seed(0)).tolist()]
    whole, first, second = RunningMeans(), RunningMeans(), RunningMeans()
    for value in values:
        whole.add({"loss": value})
    for value in values[:3]:
        first.add({"loss": value})
    second.load_state_dict(first.state_dict())
    for value in values[3:]:
        second.add({"loss": value})
    assert second.take() == whole.take()


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, step=0) as metrics:
        metrics.write(1, "train", {"loss": 0.5, "other": math.nan})
        assert path.read_text() == '{"step": 1, "split": "train", "loss": 0.5, "other": null}\n'


def test_a_continued_run_first_drops_what_it_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, step=0) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, "train", {"loss": float(step)})
            metrics.write(step, "held-out", {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 4, "spl')
    with MetricsFile(path, step=2) as metrics:
        metrics.write(2, "held-out", {"loss": 9.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["split"], line["loss"]) for line in lines] == [
        (1, "train", 1.0), (1, "held-out", 1.0), (2, "train", 2.0), (2, "held-out", 9.0),
    ]  # fmt: skip


def test_other_lines_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_bytes(b'{"step": 1, "split": "train"}\n[]\n{"loss": 1}\n\xff\n{"step"')
    assert read_metrics(path) == [{"step": 1, "split": "train"}]


def test_plain_lines_where_there_is_no_terminal(capsys):
    with Progress(steps=4, start=1, batch_size=8, interval=1000.0) as progress:
        for _ in range(3):
            progress.advance(2.0, 0.25)
        progress.log("done")
    assert capsys.readouterr().err == "step 4/4: loss 2, 32 images/s, 00:00 left\ndone\n"


def test_plain_lines_have_the_time_left(capsys):
    with Progress(steps=100, start=0, batch_size=8, interval=0.0) as progress:
        progress.advance(2.0, 1.0)
        progress.advance(math.nan, 1.0)
        progress.advance(1.0, 1.0)
    assert capsys.readouterr().err.splitlines() == [
        "step 1/100: loss 2, 8 images/s, 01:39 left",
        "step 2/100: loss 2, 8 images/s, 01:38 left",
        "step 3/100: loss 1.9, 8 images/s, 01:37 left",
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(steps=4, start=2, batch_size=8) as progress:
        progress.log("a message")
        progress.advance(2.0, 0.25)
        progress.advance(2.0, 0.25)
    text = sys.stderr.getvalue()
    assert "a message\n" in text
    assert " 50%" in text
    assert "4/4" in text
    assert "loss 2, 32 images/s" in text


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_does_not_stay_in_the_display(capsys, loss):
    with Progress(steps=2, start=0, batch_size=1, interval=0.0) as progress:
        progress.advance(loss, 1.0)
        progress.advance(3.0, 1.0)
    assert "step 2/2: loss 3," in capsys.readouterr().err
