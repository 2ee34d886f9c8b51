"""The best evaluation of a run: its weights are the result, and its rise is warned of."""

import math
import os
import signal

import pytest
import torch
from torch import nn
from toy_task import ToyTask, settings

from aimamba.errors import ConfigError
from aimamba.train.best import HeldOut, not_finite
from aimamba.train.checkpoint import read_checkpoint
from aimamba.train.fit import fit
from aimamba.train.interruption import Interrupted
from aimamba.train.result import read_about
from aimamba.train.task import Objective

CURVE = {1: 5.0, 2: 3.0, 3: 2.0, 4: 2.1, 5: 2.4, 6: 2.2, 7: 2.5, 8: 9.5, 9: 2.6, 10: 2.7, 11: 1.0, 12: 2.0}


class Overfitting(ToyTask):
    """Its held-out loss follows ``CURVE``, whatever it learns; ``before`` holds the weights at each evaluation."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.done = 0
        self.before = {}
        self.curve = CURVE

    def loss(self, model, batch, rng, step):
        self.done = step + 1
        return super().loss(model, batch, rng, step)

    def evaluate(self, model):
        self.before[self.done] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {"loss": self.curve[self.done], "other": float(self.done)}

    def objective(self):
        return Objective("loss", 9.0)


def every(**changes):
    return settings(**{"evaluate_every": 1, "sheet_every": 0, "steps": 8} | changes)


def weights(folder):
    return torch.load(folder / "weights.pt")


def same(one, two):
    torch.testing.assert_close(dict(one), dict(two), rtol=0, atol=0)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_result_is_the_best_and_the_last_stands_beside_it(tmp_path, capsys, ema_decay):
    task = Overfitting()
    result = fit(task, every(ema_decay=ema_decay), tmp_path)
    same(weights(tmp_path / "model"), task.before[3])
    same(weights(tmp_path / "model-last"), task.before[8])
    assert (result.step, result.steps) == (3, 8)
    assert result.metrics == {"loss": 2.0, "other": 3.0}
    printed = capsys.readouterr().err
    assert "step 5, held out: loss 2.4, other 5 (best loss 2 at step 3)" in printed
    assert "is that of step 3, the best by held-out loss (2; at the end 9.5, in" in printed
    assert fit(task, every(ema_decay=ema_decay), tmp_path) == result, "and when it is finished"
    assert task.done == 8


def test_where_the_last_is_asked_for_it_is_the_result(tmp_path):
    task = Overfitting()
    result = fit(task, every(keep="last"), tmp_path)
    same(weights(tmp_path / "model"), task.before[8])
    assert not (tmp_path / "model-last").exists()
    assert (result.step, result.metrics["loss"]) == (8, 9.5)
    assert not read_checkpoint(tmp_path / "checkpoint.pt").parts["best"]["weights"]


def test_a_longer_run_that_ends_with_its_best_has_one_model(tmp_path):
    fit(Overfitting(), every(), tmp_path)
    task = Overfitting()
    task.done = 8
    result = fit(task, every(steps=11), tmp_path)
    assert result.step == 11
    same(weights(tmp_path / "model"), task.before[11])
    assert not (tmp_path / "model-last").exists()


@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_stopped_run_remembers_its_best(tmp_path, step):
    def interrupt(at):
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    whole = tmp_path / "whole"
    fit(Overfitting(), every(), whole)
    with pytest.raises(Interrupted):
        fit(Overfitting(interrupt), every(), tmp_path / "parts")
    task = Overfitting()
    task.done = step
    fit(task, every(), tmp_path / "parts")
    for name in ("model", "model-last"):
        same(weights(tmp_path / "parts" / name), weights(whole / name))
    parts = (read_checkpoint(tmp_path / name / "checkpoint.pt").parts for name in ("parts", "whole"))
    torch.testing.assert_close(*parts, rtol=0, atol=0)


class TestPatience:
    def test_it_ends_the_run_and_a_larger_one_continues(self, tmp_path, capsys):
        task = Overfitting()
        result = fit(task, every(steps=11, patience=3), tmp_path / "parts")
        assert (task.done, result.steps, result.step) == (6, 6, 3)
        printed = capsys.readouterr().err
        assert "ended after step 6 of 11: held-out loss has not improved in 3 evaluations" in printed
        assert (tmp_path / "parts/sheets/step-000006.png").exists()

        again = Overfitting()
        assert fit(again, every(steps=11, patience=3), tmp_path / "parts") == result
        assert again.positions == []
        assert "fit.patience = 3 ended it after step 6 of 11; raise it" in capsys.readouterr().err

        again.done = 6
        longer = fit(again, every(steps=11, patience=0), tmp_path / "parts")
        assert (longer.steps, longer.step, again.positions[0]) == (11, 11, 24)
        fit(Overfitting(), every(steps=11), tmp_path / "whole")
        same(weights(tmp_path / "parts/model"), weights(tmp_path / "whole/model"))

    def test_evaluations_before_a_stop_count(self, tmp_path):
        def interrupt(at):
            if at == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return 1.0

        with pytest.raises(Interrupted):
            fit(Overfitting(interrupt), every(steps=11, patience=3), tmp_path)
        task = Overfitting()
        task.done = 5
        assert fit(task, every(steps=11, patience=3), tmp_path).steps == 6

    def test_a_kill_before_the_model_was_saved(self, tmp_path, monkeypatch):
        def fail(*_):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(ToyTask, "save", fail)
            with pytest.raises(MemoryError):
                fit(Overfitting(), every(steps=11, patience=3), tmp_path)
        task = Overfitting()
        task.done = 6
        assert fit(task, every(steps=11, patience=3), tmp_path).step == 3
        assert task.positions == []

    def test_it_needs_evaluations_and_a_loss_to_judge_by(self, tmp_path, monkeypatch):
        with pytest.raises(ConfigError, match=r"fit.patience = 2 counts evaluations, but fit.evaluate_every is 0"):
            settings(patience=2, evaluate_every=0)
        monkeypatch.setattr(ToyTask, "objective", lambda self: None)
        with pytest.raises(ConfigError, match=r"fit.patience needs a held-out loss to judge by"):
            fit(ToyTask(), settings(patience=2), tmp_path)


def test_another_choice_for_a_finished_run_is_made_from_its_checkpoint(tmp_path, capsys):
    task = Overfitting()
    fit(task, every(), tmp_path)
    last = task.before[8]
    result = fit(task, every(keep="last"), tmp_path)
    same(weights(tmp_path / "model"), last)
    assert result.step == 8
    assert not (tmp_path / "model-last").exists()
    assert read_about(tmp_path).keep == "last"


def test_a_run_that_did_not_keep_its_best_compares_from_here(tmp_path, capsys):
    fit(Overfitting(), every(keep="last", steps=5), tmp_path)
    task = Overfitting()
    task.done = 5
    result = fit(task, every(steps=7), tmp_path)
    assert result.step == 6
    assert "has not kept its best model so far" in capsys.readouterr().err


def test_a_checkpoint_of_a_version_without_it_goes_on(tmp_path):
    fit(Overfitting(), every(steps=5), tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt")
    del content["parts"]["best"]
    torch.save(content, tmp_path / "checkpoint.pt")
    (tmp_path / "model/result.json").unlink()
    task = Overfitting()
    task.done = 5
    assert fit(task, every(steps=5), tmp_path).step == 5, "its result stands"
    assert fit(task, every(steps=7), tmp_path).step == 6


def test_a_diverged_run_keeps_its_best_or_nothing(tmp_path, monkeypatch):
    loss = ToyTask.loss

    def break_weights(self, model, batch, rng, step):
        if step == 7:
            model[3].bias.data[0] = math.nan
        return loss(self, model, batch, rng, step)

    monkeypatch.setattr(ToyTask, "loss", break_weights)
    result = fit(Overfitting(), every(ema_decay=0.0), tmp_path / "best")
    assert result.step == 3
    assert not (tmp_path / "best/model-last").exists()
    with pytest.raises(ConfigError, match=r"weights after step 8 are not finite \(3.bias\), so no model is saved"):
        fit(Overfitting(), every(ema_decay=0.0, keep="last"), tmp_path / "last")
    assert not (tmp_path / "last/model").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"step": "1", "steps": 1, "keep": "", "patience": 0, "metrics": {}}', "[" * 9999]
)
def test_a_damaged_note_on_the_result_is_not_read(tmp_path, text):
    fit(ToyTask(), settings(), tmp_path)
    (tmp_path / "model/result.json").write_text(text)
    assert read_about(tmp_path) is None
    assert fit(ToyTask(), settings(), tmp_path).step == 6


class TestWarnings:
    def follow(self, curve, *, uniform=9.0):
        watched, found = HeldOut(Objective("bits", uniform), keep=True, patience=0), {}
        for step, value in enumerate(curve, 1):
            if lines := watched.observe(step, {"bits": float(value)}, nn.Linear(1, 1)):
                found[step] = lines
        return found

    def test_three_in_a_row_without_improvement(self):
        found = self.follow([5, 4, 4.1, 4.05, 4.2, 4.3, 3.9, 3.95])
        assert found.keys() == {5}
        assert found[5][0].startswith("warning: held-out bits rises: 4.2, best 4 at step 2.")

    def test_one_that_is_clearly_above_the_best(self):
        assert self.follow([5, 4, 4.5, 4.6]).keys() == {3}

    def test_worse_than_knowing_nothing(self):
        found = self.follow([13.1, 8, 13.08, 13.2])
        assert found[1] == ["warning: held-out bits is 13.1, worse than the 9 of a model that knows nothing"]
        assert len(found[3]) == 2
        assert found.keys() == {1, 3}
        assert self.follow([9.05, 9.0]) == {}, "random weights are a little worse"

    def test_not_a_number(self):
        assert self.follow([5, math.nan])[2][0].startswith("warning: held-out bits is nan: the training diverges")

    def test_falling_is_not_warned_of(self):
        assert self.follow([5, 4, 3, 2, 2.05, 1.9, 1.95, 1.95], uniform=math.inf) == {}

    def test_without_an_objective_nothing_is_followed(self):
        watched = HeldOut(None, keep=True, patience=0)
        assert watched.observe(1, {"x": math.nan}, nn.Linear(1, 1)) == []
        assert (watched.superseded, watched.exhausted, watched.compared()) == (False, False, "")


def test_the_first_tensor_that_is_not_finite_is_named():
    model = nn.Linear(2, 2)
    assert not_finite(model) is None
    model.bias.data[1] = math.inf
    assert not_finite(model) == "bias"
