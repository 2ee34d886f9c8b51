import copy
import math

import pytest
import torch
from torch import nn

from aimamba.train import optim
from aimamba.train.optim import Learner, adamw, learning_rate


class Mixed(nn.Module):
    """One of each kind of parameter that the models have."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 5)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.words.weight
        self.norm = nn.LayerNorm(4)
        self.convolution = nn.Conv2d(1, 2, 3)
        self.codebook = nn.Parameter(torch.ones(3, 2))
        self.A_log, self.D, self.dt_bias = (nn.Parameter(torch.ones(2)) for _ in range(3))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def grouped(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[float, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        group["weight_decay"]: {names[parameter] for parameter in group["params"]} for group in optimizer.param_groups
    }


def test_decay_is_for_matrices_only():
    model = Mixed()
    optimizer = adamw(
        model, lr=0.1, betas=(0.9, 0.95), weight_decay=0.05, no_weight_decay=lambda name: name == "codebook"
    )
    assert grouped(model, optimizer) == {
        0.05: {"linear.weight", "convolution.weight"},
        0.0: {
            "words.weight", "linear.bias", "norm.weight", "norm.bias", "convolution.bias", "codebook",
            "A_log", "D", "dt_bias",
        },
    }  # fmt: skip
    assert "codebook" in grouped(model, adamw(model, lr=0.1, betas=(0.9, 0.95), weight_decay=0.05))[0.05]


def test_decay_applies():
    model = Mixed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adamw(model, lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    torch.testing.assert_close(after["linear.weight"], before["linear.weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(after["words.weight"], before["words.weight"])


def rates(schedule, *, steps=10, warmup_steps=4, final_fraction=0.1):
    return [
        learning_rate(
            step, peak=2.0, steps=steps, warmup_steps=warmup_steps, schedule=schedule, final_fraction=final_fraction
        )
        for step in range(steps)
    ]


def test_schedules():
    warmup = [0.5, 1.0, 1.5, 2.0]
    assert rates("constant") == pytest.approx(warmup + [2.0] * 6)
    assert rates("linear") == pytest.approx([*warmup, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5])
    cosine = rates("cosine")
    assert cosine[:5] == pytest.approx([*warmup, 2.0])
    assert cosine[7] == pytest.approx((2.0 + 0.2) / 2)  # halfway
    assert cosine[9] == pytest.approx(0.2 + 1.8 * (1 + 3**0.5 / -2) / 2)  # cos(150 degrees)


def test_warmup_may_be_absent_or_longer_than_the_run():
    assert rates("linear", steps=2, warmup_steps=0, final_fraction=0.0) == pytest.approx([2.0, 1.0])
    assert rates("cosine", steps=2, warmup_steps=8) == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize("heeding", [("cpu",), ()])
@pytest.mark.parametrize("limit", [0.5, 1e6, 0.0])
def test_clipping_and_skipping(heeding, limit, monkeypatch):
    """On a Mac too, whose fused optimisers heed neither the scale nor that a step is to be skipped."""
    monkeypatch.setattr(optim, "_HEEDING", heeding)
    network = nn.Linear(4, 3)
    other = copy.deepcopy(network)
    learner = Learner(network, adamw(network, lr=0.1, betas=(0.9, 0.99), weight_decay=0.1), 0.1)
    plain = adamw(other, lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    rng = torch.Generator().manual_seed(0)
    for gradient in (1.0, math.nan, 3.0):
        before = copy.deepcopy((network.state_dict(), learner.optimizer.state_dict()["state"]))
        for one, two in zip(network.parameters(), other.parameters(), strict=True):
            one.grad = gradient * torch.randn(one.shape, generator=rng)
            two.grad = one.grad.clone()
        norm = learner.clip(limit)
        learner.step((~norm.isfinite()).float())
        if math.isnan(gradient):
            torch.testing.assert_close((network.state_dict(), learner.optimizer.state_dict()["state"]), before)
        else:
            torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(other.parameters(), limit or math.inf))
            plain.step()
            torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-6)
