"""A run of many processes: all take the same steps with their parts of each batch; the first writes and prints.

Whole weights exist only where a model is evaluated, shown or saved: in the first process, gathered one tensor after
another. The other processes wait for it.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aimamba.distributed import Team
from aimamba.signals import STOPPING
from aimamba.train.ahead import Ahead
from aimamba.train.checkpoint import Checkpoint, Found
from aimamba.train.ema import Average
from aimamba.train.interruption import Interruption
from aimamba.train.parallel.checkpoint import ShardedWriter, laid_out
from aimamba.train.parallel.layout import Layout
from aimamba.train.parallel.spread import ShardedAverage, SpreadLoss, combined, gather
from aimamba.train.run import Run, Value
from aimamba.train.settings import FitConfig
from aimamba.train.step import Combine, Loss, Reports
from aimamba.train.task import Auxiliary, Batch, Model, Task


class ManyRun(Run[Model, Batch]):
    """The part of one process in the state of a run, and the loop that trains it."""

    def __init__(
        self,
        task: Task[Model, Batch],
        config: FitConfig,
        out: Path,
        recipe: str,
        team: Team,
        layout: Layout,
        interruption: Interruption,
        found: Found | None,
    ) -> None:
        """Begin a run in ``out``, or restore it; see ``Run``.

        Args:
            task: The task, with the same weights in every process.
            config: Settings of the loop.
            out: Folder of the run.
            recipe: The recipe, as TOML.
            team: The processes.
            layout: How they share the model.
            interruption: Notes signals to this process.
            found: The checkpoint to continue from.
        """
        self.team, self.layout, self.interruption = team, layout, interruption
        self.writes = team.is_first
        self._signal = 0  # that a process has received
        self._stepped = False
        self._told = torch.zeros(len(STOPPING) + 1)  # how many processes have met what; see _combine
        self._whole: Model | None = None
        super().__init__(task, config, out, recipe, team.device, found)
        self._writer = ShardedWriter(out, count=config.checkpoints)

    def prepare(self, auxiliary: Auxiliary | None) -> tuple[Loss[Model, Batch], Combine]:
        """Spread the networks over the processes."""
        if self.writes:
            self._whole = copy.deepcopy(self.model).cpu().eval().requires_grad_(False)
        loss = SpreadLoss(
            self.task.loss,
            self.model,
            None if auxiliary is None else auxiliary.network,
            device=self.device,
            layout=self.layout,
            precision=self.precision,
            accumulation=self.config.accumulation,
        )
        return loss, self._combine

    def new_average(self) -> Average:
        """Return the moving average of this process's shards."""
        return ShardedAverage(self.model, self.config.ema_decay)

    def laid_out(self, found: Found) -> Checkpoint:
        """Return a checkpoint with the shards of this process."""
        return laid_out(found, self.parts)

    def read(self) -> Iterator[Batch]:
        """Return this process's examples: of every part of a batch the rows that its rank gives it."""
        config, place = self.config, self.team.place
        part = config.batch_size // config.accumulation
        own = part // place.size
        start = self.step * config.batch_size + place.rank * own
        for batch in self.task.batches(start, own, stride=part):
            self.team.watch.progress()
            yield batch

    def once(self, make: Callable[[], Value]) -> Value:
        """Let the first process call ``make``, and return what it returns in all."""
        return self.team.shared(make)

    def stopped_by(self, interruption: Interruption) -> int:
        """Return the number of the signal that one of the processes had received before the last step ended."""
        return self._signal

    def update(self, batches: Ahead[Batch], lr: float) -> tuple[float, float]:
        """Take one step; see ``Run.update``."""
        found = super().update(batches, lr)  # which has waited for the device
        *received, failed = self._told.tolist()
        self._signal = next((number for number, count in zip(STOPPING, received, strict=True) if count), 0)
        self.team.watch.progress()
        if not self._stepped:
            self._stepped = True
            self.team.watch.expect_progress()
        if failed:
            self._finish_writing()
        return found

    def _combine(self, losses: list[Tensor], reports: Reports) -> tuple[list[Tensor], Reports]:
        """Average losses and reports over the processes, and tell each other what has happened to one of them."""
        received = [float(self.interruption.received == number) for number in STOPPING]
        losses, reports, self._told = combined(losses, reports, [*received, float(self._writer.failed)])
        return losses, reports

    @contextlib.contextmanager
    def model_to_keep(self) -> Iterator[Model]:
        """Yield the whole model in the first process, gathered from all; in the others their part, not to be used."""
        tensors = self.average.tensors if isinstance(self.average, ShardedAverage) else dict(self.model.state_dict())
        whole = self._whole
        with torch.no_grad():
            if whole is None:
                gather(tensors, None)
                yield self.model
            else:
                whole.to(self.device)
                into = whole.state_dict()
                gather(tensors, lambda name, tensor: into[name].copy_(tensor))
                yield whole
                whole.cpu()

    def whole_weights(self) -> dict[str, dict[str, Any]]:
        """Return the state of the whole modules in the first process, gathered from all; in the others nothing."""
        found: dict[str, dict[str, Any]] = {}
        for part_name, part in self.parts.items():
            if isinstance(part, nn.Module):
                into = found.setdefault(part_name, {})

                def keep(name: str, tensor: Tensor, into: dict[str, Any] = into) -> None:
                    into[name] = tensor.cpu()

                gather(part.state_dict(), keep if self.writes else None)
        return found

    def save_checkpoint(self, *, last: bool = False) -> None:
        """Begin to write a checkpoint; with ``last`` it is whole when this returns."""
        self._finish_writing()
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        with self.team.watch.patient():
            self._writer.begin(self.step, self.seconds, self.recipe, self.basis, parts)
        if last:
            self._finish_writing()

    def _finish_writing(self) -> None:
        with self.team.watch.patient():
            self._writer.finish()
