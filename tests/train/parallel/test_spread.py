"""The pieces of a model that is spread over processes."""

import copy

import pytest
import torch
from ranks import together
from ranks_task import CPU, TIMEOUT, Generator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from aimamba.distributed import Team, find_place
from aimamba.errors import ConfigError
from aimamba.train.parallel.layout import Layout
from aimamba.train.parallel.spread import SpreadLoss, WholeBatchNorm, gather, share_batch_norms
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


class Exchanges(TorchDispatchMode):
    """Notes the names of the operations that send something to other processes."""

    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if "c10d" in function.namespace:
            self.names.append(function.name())
        return function(*arguments, **(options or {}))


def reductions(_rank: int, accumulation: int) -> int:
    """Return the number of reductions in the forward and backward passes of a batch."""
    task = Generator()
    with Team(find_place(), CPU, timeout=TIMEOUT):
        options = {"layout": Layout(2, 1), "precision": "float32", "accumulation": accumulation}
        loss = SpreadLoss(task.loss, task.model, None, device=CPU, **options)
        with Exchanges() as seen:
            for part, batch in zip(range(accumulation), task.batches(0, 4 // accumulation), strict=False):
                loss(task.model, batch, torch.Generator().manual_seed(part), 0)[0].backward()
        return sum("reduce" in name for name in seen.names)


def test_gradients_are_reduced_once_a_batch(tmp_path):
    whole, parts = (together(2, reductions, number, logs=tmp_path)[0] for number in (1, 4))
    assert whole > 0
    assert parts == whole


def gathers(_rank: int, shards: int) -> list[str]:
    """Spread tensors of 0 to 4 rows and gather them again; return the names of the exchanges."""
    with Team(find_place(), CPU, timeout=TIMEOUT):
        mesh = init_device_mesh("cpu", (3 // shards, shards), mesh_dim_names=("copies", "shards"))
        whole = {str(rows): torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(rows)) for rows in range(5)}
        sharded = {n: distribute_tensor(t, mesh, [Replicate(), Shard(0)], src_data_rank=None) for n, t in whole.items()}
        sharded["copied"] = distribute_tensor(whole["3"], mesh, [Replicate(), Replicate()], src_data_rank=None)
        found = {}
        with Exchanges() as seen:
            gather({**sharded, "plain": whole["2"]}, found.__setitem__)
        assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
        assert torch.equal(found["copied"], whole["3"])
        assert torch.equal(found["plain"], whole["2"])
        return seen.names


@pytest.mark.parametrize(("shards", "exchanges"), [(1, set()), (3, {"c10d::allgather_"})])
def test_shards_are_gathered_by_an_exchange_whose_name_is_short(tmp_path, shards, exchanges):
    """Gloo's threads write the name of each exchange without a lock; with one of 16 letters the heap was damaged."""
    for names in together(3, gathers, shards, logs=tmp_path):
        assert set(names) == exchanges
