"""What a run says of its cost, before and after its first steps."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from toy_task import ToyTask, settings

from aimamba.train import costs as costs_module
from aimamba.train.costs import Costs, peak_memory
from aimamba.train.fit import fit
from aimamba.train.task import Amount

CPU = torch.device("cpu")
USUAL = Amount(5000, 500, 64, "codes")


def costs(amount=USUAL, *, parameters=2_060_268, start=0, **fit):
    config = settings(**{"steps": 150, "batch_size": 48, "warmup_steps": 0} | fit)
    return Costs(amount, config, parameters=parameters, start=start, device=CPU)


def test_steps_images_and_epochs():
    [line] = costs().before()
    assert line == (
        "training 2,060,268 parameters on 5,000 images, 500 held out: 150 steps of 48 = 7,200 images, 1.44 epochs"
    )


@pytest.mark.parametrize(
    ("amount", "few"),
    [
        (Amount(120, 50, 64, "codes"), True),
        (Amount(120, 50, 64, "codes", views=20), False),  # three epochs of each view
        (Amount(2000, 50, 64, "codes"), False),
        (Amount(120, 50, 64 * 64 * 3 * 2, "pixel values"), True),
        (Amount(120, 50, 128 * 128 * 3, "pixel values"), False),
    ],
)
def test_a_set_too_small_for_the_model(amount, few):
    parameters = 3_000_000
    lines = costs(amount, parameters=parameters).before()
    assert len(lines) == 1 + few
    if few:
        assert lines[1].startswith(f"note: 120 images of {amount.values:,} {amount.unit} are few for 3,000,000 param")
        assert "60 epochs, so the model may memorise them" in lines[1]


def test_few_held_out_images():
    assert costs(Amount(5000, 5, 64, "codes")).before()[1] == (
        "note: with 5 held-out images the held-out numbers are rough"
    )


def test_time_left_after_ten_steps_is_that_of_the_median_step():
    run = costs(start=20)
    assert [run.observe(seconds) for seconds in (90.0, *[2.0] * 8)] == [[]] * 9
    [line] = run.observe(2.0)
    assert line.startswith("2 s a step: 04:00 for the 120 steps left, without evaluations and sheets; ")
    assert line.endswith(" GiB of memory at its peak")
    assert run.observe(2.0) == []


@pytest.mark.parametrize(("workers", "told"), [(0, True), (1, False), (None, False)])
def test_reading_that_holds_the_step_up_is_told(monkeypatch, workers, told):
    clock = itertools.count()  # every batch takes a second to read
    monkeypatch.setattr(costs_module, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(costs_module, "usable_cores", lambda: 2)
    run = costs(Amount(5000, 500, 64, "pixel values", workers=workers))
    for _ in itertools.islice(run.timed(itertools.count()), 10):
        lines = run.observe(2.0)
    assert len(lines) == 1 + told
    if told:
        assert lines[1] == "note: reading images takes 50% of a step: --workers 2 (data.workers) reads them ahead"


def test_the_memory_of_this_process():
    assert 0.05 < peak_memory(CPU) < 1000


def test_a_run_says_so(tmp_path, capsys):
    fit(ToyTask(), settings(steps=12, sheet_every=0), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training 57 parameters on 100 images, 50 held out: 12 steps of 4 = 48 images, 0.48 ep")
    assert any(" for the 2 steps left" in line for line in lines)


def test_quiet_is_warnings_alone(tmp_path, capsys):
    task = ToyTask(lambda step: float("nan") if step == 2 else 1.0)
    fit(task, settings(steps=12, evaluate_every=0), tmp_path, quiet=True)
    fit(task, settings(steps=12, evaluate_every=0), tmp_path, quiet=True)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("step 2 is skipped: its loss is nan")
