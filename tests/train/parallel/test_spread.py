"""The pieces of a model that is spread over processes."""

import copy

import pytest
import torch
from ranks import together
from ranks_task import CPU, TIMEOUT, Generator
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from aimamba.distributed import Team, find_place
from aimamba.errors import ConfigError
from aimamba.train.parallel.layout import Layout
from aimamba.train.parallel.spread import SpreadLoss, WholeBatchNorm, share_batch_norms
from tests.refusals import one_line_error


def make_network() -> tuple[nn.Module, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh())
    nn.init.normal_(network[0].weight, 1.0, 0.1, generator=rng)
    return network, torch.randn((4, 3, 5, 5), generator=rng) + 2


def outputs(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    images = images.clone().requires_grad_()
    out = network(images)
    (out * torch.linspace(0, 1, 25).view(5, 5)).square().sum().backward()
    return [out.detach(), images.grad, network[0].weight.grad, network[0].bias.grad]


def halves(rank: int) -> list[list[float]]:
    network, images = make_network()
    share_batch_norms(network)
    with Team(find_place(), CPU, timeout=TIMEOUT):
        return [tensor.tolist() for tensor in outputs(network, images[2 * rank : 2 * rank + 2])]


def test_one_process_normalises_like_torch():
    network, images = make_network()
    ours = copy.deepcopy(network)
    share_batch_norms(ours)
    assert isinstance(ours[0], WholeBatchNorm)
    for one, other in zip(outputs(ours, images), outputs(network, images), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_two_processes_normalise_the_whole_batch(tmp_path):
    network, images = make_network()
    out, gradient, *weights = outputs(network, images)
    first, second = together(2, halves, logs=tmp_path)
    for found, whole in ((0, out), (1, gradient)):
        assert_close(torch.tensor(first[found] + second[found]), whole, rtol=1e-5, atol=1e-5)
    for found, whole in enumerate(weights, 2):
        assert_close(torch.tensor(first[found]) + torch.tensor(second[found]), whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.BatchNorm1d(3, track_running_stats=False)])
def test_a_batch_norm_that_cannot_be_shared_is_refused(norm):
    with one_line_error(ConfigError, "the batch norm 0 keeps running statistics, which several processes do not share"):
        share_batch_norms(nn.Sequential(norm))


class Operations(TorchDispatchMode):
    """Counts the operations that reduce something over processes."""

    def __init__(self) -> None:
        super().__init__()
        self.reductions = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.reductions += function.namespace == "c10d" and "reduce" in function.name()
        return function(*arguments, **(options or {}))


def reductions(_rank: int, accumulation: int) -> int:
    """Return the number of reductions in the forward and backward passes of a batch."""
    task = Generator()
    with Team(find_place(), CPU, timeout=TIMEOUT):
        options = {"layout": Layout(2, 1), "precision": "float32", "accumulation": accumulation}
        loss = SpreadLoss(task.loss, task.model, None, device=CPU, **options)
        with Operations() as seen:
            for part, batch in zip(range(accumulation), task.batches(0, 4 // accumulation), strict=False):
                loss(task.model, batch, torch.Generator().manual_seed(part), 0)[0].backward()
        return int(seen.reductions)


def test_gradients_are_reduced_once_a_batch(tmp_path):
    whole, parts = (together(2, reductions, number, logs=tmp_path)[0] for number in (1, 4))
    assert whole > 0
    assert parts == whole
