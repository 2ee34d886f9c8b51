"""Spread a model over processes from outside it, as torchtitan does: PyTorch's DeviceMesh and FSDP2.

All layouts are one mesh, copies x shards. The model and its auxiliary network hang in one module whose forward pass is
the loss of the task: that is the one call which FSDP sees, so a task may call any method of its networks in any order.
Inside it parameters are whole tensors; outside it they are DTensors, of which a process holds its shard.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from aimamba import distributed
from aimamba.config import check
from aimamba.models import AiM
from aimamba.train.ema import Followers, decay_now, new_share
from aimamba.train.parallel.layout import Layout
from aimamba.train.step import Loss, Reports
from aimamba.train.task import Batch, Model

_SHARDS = "shards"  # the name of that dimension of the mesh


class _LossModule(nn.Module, Generic[Model, Batch]):
    """The loss of a task as the forward pass of its networks."""

    def __init__(self, loss: Loss[Model, Batch], model: Model, auxiliary: nn.Module | None) -> None:
        super().__init__()
        self.loss, self.model, self.auxiliary = loss, model, auxiliary

    def forward(self, batch: Batch, rng: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        return self.loss(self.model, batch, rng, step)


class SpreadLoss(Generic[Model, Batch]):
    """``Task.loss`` of networks that are spread over processes; called like it."""

    def __init__(
        self,
        loss: Loss[Model, Batch],
        model: Model,
        auxiliary: nn.Module | None,
        *,
        device: torch.device,
        layout: Layout,
        precision: str,
        accumulation: int,
    ) -> None:
        """Spread ``model`` and ``auxiliary``, whose parameters become DTensors.

        Every process must hold the same weights. Gradients are summed in float32, after the last part of a batch only.
        With ``precision`` bfloat16 the matrices of a generator's blocks are exchanged in bfloat16, to which autocast
        rounds them for every product anyway; all other parameters are float32.

        Args:
            loss: The loss of the task.
            model: The model, on ``device``.
            auxiliary: The network that is trained beside it, on ``device``.
            device: Device of this process.
            layout: Numbers of copies and of shards.
            precision: ``float32`` or ``bfloat16``.
            accumulation: Parts of a batch.
        """
        self._accumulation, self._part = accumulation, 0
        self.mesh = init_device_mesh(device.type, (layout.replicate, layout.shard), mesh_dim_names=("copies", _SHARDS))
        # A block returns its residual as a view in places; nothing is ever written into it.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        module = _LossModule(loss, model, auxiliary)
        for network in (model, auxiliary):
            if network is not None:
                share_batch_norms(network)
        narrow = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bfloat16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        wide = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        again = layout.shard > 1  # with whole copies there is nothing to gain by giving parameters back after a pass
        if isinstance(model, AiM):
            for block in model.blocks:
                matrices: list[nn.Module] = [block.mixer.in_proj, block.mixer.out_proj]  # the others must stay float32
                fully_shard(matrices, mesh=self.mesh, mp_policy=narrow, reshard_after_forward=again)
                fully_shard(block, mesh=self.mesh, mp_policy=wide, reshard_after_forward=again)
        fully_shard(module, mesh=self.mesh, mp_policy=wide)
        self._module = cast("FSDPModule", module)
        self._stored = dict(model.named_parameters())  # DTensors, also while the module holds whole parameters
        self._changed = "codebook" if isinstance(self._stored.get("codebook"), DTensor) else None

    def __call__(
        self, model: Model, batch: Batch, rng: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return what ``Task.loss`` returns, for the rows of this process."""
        self._part = self._part % self._accumulation + 1
        self._module.set_requires_gradient_sync(self._part == self._accumulation)
        found = cast(nn.Module, self._module)(batch, rng, step)
        if self._changed is not None:
            self._keep(model, self._changed)
        return found

    @torch.no_grad()
    def _keep(self, model: nn.Module, name: str) -> None:
        """Take over what the loss has written into a parameter: it wrote into the whole one."""
        stored, whole = self._stored[name], model.get_parameter(name)
        if isinstance(stored, DTensor) and not isinstance(whole, DTensor):
            stored.to_local().copy_(spread(whole.detach(), stored).to_local())


def combined(losses: list[Tensor], reports: Reports, more: Iterable[float]) -> tuple[list[Tensor], Reports, Tensor]:
    """Average the losses and reports of the parts of a batch over all processes, in one exchange.

    Args:
        losses: A scalar for each part.
        reports: Scalars by name for each part, the same names in every process.
        more: Further numbers, to be added up.

    Returns:
        Means, means and sums, all on the device: nothing waits for them.
    """
    device = losses[0].device
    numbers: list[Tensor | float] = [*losses, *(value for report in reports for value in report.values()), *more]
    stacked = torch.stack([_scalar_on(device, number) for number in numbers])
    means = list(distributed.mean(stacked).unbind())
    rest = means[len(losses) :]
    averaged: Reports = []
    for report in reports:
        averaged.append(dict(zip(report, rest, strict=False)))
        rest = rest[len(report) :]
    sums = stacked.new_tensor([]) if not rest else torch.stack(rest) * distributed.size()
    return means[: len(losses)], averaged, sums


def _scalar_on(device: torch.device, number: Tensor | float) -> Tensor:
    """Return a number as a float32 scalar on a device, without waiting for a copy."""
    if isinstance(number, Tensor):
        return number.detach().to(device, torch.float32)
    return torch.full((), number, dtype=torch.float32, device=device)


def spread(whole: Tensor, like: DTensor) -> DTensor:
    """Return the DTensor of a whole tensor that every process holds, laid out as ``like``; nothing is sent."""
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather(tensors: Mapping[str, Tensor], keep: Callable[[str, Tensor], object] | None) -> None:
    """Gather tensors one by one; a collective call.

    Args:
        tensors: By name; DTensors and tensors that every process has.
        keep: Called with each name and whole tensor; None in a process that only takes part.
    """
    for name, tensor in tensors.items():
        whole = _whole(tensor) if isinstance(tensor, DTensor) else tensor.detach()
        if keep is not None:
            keep(name, whole)


def _whole(tensor: DTensor) -> Tensor:
    """Return a DTensor as the tensor that it stands for; a collective call.

    ``full_tensor`` would do, but Gloo's threads note the name of each exchange without a lock (PyTorch 2.13), and the
    name of its exchange, ALLGATHER_COALESCED, is too long to be stored in place: two threads may free it twice.
    """
    local, group = tensor.to_local().detach(), tensor.device_mesh.get_group(_SHARDS)
    processes = group.size()
    if processes == 1 or not any(isinstance(placement, Shard) for placement in tensor.placements):
        return local
    rows = -(-tensor.shape[0] // processes)  # the last processes may hold fewer
    padded = local.new_zeros((rows, *tensor.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts)[: tensor.shape[0]]


class ShardedAverage:
    """The moving average of a model whose parameters are DTensors: every process averages its own shards.

    It has the numbers and the state of ``ExponentialAverage``, but no module. Frozen parameters are those of the model
    itself.

    Attributes:
        tensors: The averages by name, laid out as those of the model.
        decay: Largest value of ``d``.
        updates: Number of updates so far, see ``Average``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
        self.tensors = {
            name: tensor.detach() if name in self._frozen else tensor.detach().clone()
            for name, tensor in model.state_dict().items()
        }
        self.decay = decay
        self.updates = 0
        self._share = new_share(map(_local, self.tensors.values()))

    def prepare(self) -> None:
        """See ``Average.prepare``."""
        self._share.fill_(1 - decay_now(self.decay, self.updates))

    def update(self, model: nn.Module, skip: Tensor) -> None:
        """See ``Average.update``."""
        moved = [(name, tensor) for name, tensor in model.state_dict().items() if name not in self._frozen]
        Followers((_local(self.tensors[name]), _local(tensor)) for name, tensor in moved).move(self._share, skip)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for ``load_state_dict``."""
        return {"updates": self.updates, "model": dict(self.tensors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned, laid out as this one.

        Raises:
            KeyError: It has other names.
        """
        for name, tensor in self.tensors.items():
            _local(tensor).copy_(_local(state["model"][name]))
        self.updates = state["updates"]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


class WholeBatchNorm(nn.BatchNorm2d):
    """A batch norm without running statistics that normalises by the batch of all processes.

    It is ``nn.SyncBatchNorm``, which refuses tensors on a CPU; and one form for all devices is one to test.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (b, C, H, W) by means and variances over b, H and W of all processes."""
        wide = x.float()
        count = wide[:, 0].numel() * distributed.size()
        mean = distributed.summed(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = distributed.summed(centred.square().sum((0, 2, 3))) / count
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        out = centred * scale[:, None, None]
        return (out if self.bias is None else out + self.bias[:, None, None]).to(x.dtype)


def share_batch_norms(network: nn.Module) -> None:
    """Make the batch norms of a network normalise by the batch of all processes; parameters and names stay.

    Raises:
        ConfigError: One of them keeps running statistics or is of another kind.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            check(
                type(module) is nn.BatchNorm2d and not module.track_running_stats,
                f"the batch norm {name} keeps running statistics, which several processes do not share; train in one",
            )
            module.__class__ = WholeBatchNorm
