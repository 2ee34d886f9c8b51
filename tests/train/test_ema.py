import math

import pytest
import torch
from torch import nn

from aimamba.train import optim
from aimamba.train.ema import ExponentialAverage

TAKEN, SKIPPED = torch.zeros(()), torch.ones(())


class Changing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.tied = self.weight
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.mean.fill_(-value)
            self.count.fill_(int(value))


def move(average, model):
    average.prepare()
    average.update(model, TAKEN)
    average.updates += 1


def test_the_average_follows_the_formula():
    model = Changing()
    average = ExponentialAverage(model, decay=0.3)
    expected = 0.0
    for t in range(6):
        model.set(float(t + 1))
        move(average, model)
        decay = min(0.3, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * (t + 1)
    torch.testing.assert_close(average.model.weight, torch.full((2,), expected))
    torch.testing.assert_close(average.model.mean, torch.tensor([-expected]))
    assert average.model.count == 6
    assert average.model.tied is average.model.weight


def test_the_average_is_never_in_training_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    average = ExponentialAverage(model, decay=0.9)
    assert not average.model[1].training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    move(average, model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_its_state_continues_it():
    model = Changing()
    first, second = ExponentialAverage(model, decay=0.9), ExponentialAverage(model, decay=0.9)
    model.set(3.0)
    move(first, model)
    second.load_state_dict(first.state_dict())
    model.set(5.0)
    move(first, model)
    move(second, model)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("heeding", [("cpu",), ()])
@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_a_skipped_step_leaves_no_trace(decay, heeding, monkeypatch):
    """Also where a fused optimiser does not heed that it is to skip a step, as on a Mac."""
    monkeypatch.setattr(optim, "_HEEDING", heeding)
    model = Changing()
    average, other = ExponentialAverage(model, decay), ExponentialAverage(model, decay)
    for value in (3.0, torch.nan, 5.0):
        before = {name: tensor.clone() for name, tensor in average.model.state_dict().items()}
        with torch.no_grad():
            model.weight.fill_(value)
            model.mean.fill_(value)
            model.count.fill_(7)
        if math.isnan(value):
            average.prepare()
            average.update(model, SKIPPED)
            assert all(torch.equal(tensor, before[name]) for name, tensor in average.model.state_dict().items())
        else:
            move(average, model)
            move(other, model)
    torch.testing.assert_close(average.state_dict(), other.state_dict(), rtol=0, atol=0)
