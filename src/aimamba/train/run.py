"""A run of training: its state, its loop, and what it leaves in its folder."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import nn

from aimamba.config import check
from aimamba.devices import bfloat16_pays
from aimamba.errors import ConfigError, counted
from aimamba.files import write_atomically
from aimamba.train.ahead import Ahead
from aimamba.train.bad_batch import LastStep, keep_bad_batch
from aimamba.train.best import HeldOut, not_finite
from aimamba.train.checkpoint import Checkpoint, Found, Stateful, check_same_basis, restore, write_checkpoint
from aimamba.train.checkpoint_files import CHECKPOINT_FILE
from aimamba.train.costs import Costs
from aimamba.train.ema import Average, ExponentialAverage
from aimamba.train.interruption import Interrupted, Interruption
from aimamba.train.optim import Learner, adamw, learning_rate
from aimamba.train.records import Records
from aimamba.train.result import (
    LAST,
    RESULT,
    About,
    discard_last,
    save_result,
)
from aimamba.train.settings import FitConfig
from aimamba.train.step import Combine, Loss, RecordedStep, TrainingStep, alone, is_recorded
from aimamba.train.task import Auxiliary, Batch, Model, Task
from aimamba.train.tracking import Progress, RunningMeans

Value = TypeVar("Value")

_MAX_FAILURES = 5


def _blocks(model: nn.Module) -> Iterable[nn.Module]:
    """Return the blocks of a generator."""
    blocks = getattr(model, "blocks", None)
    check(
        isinstance(blocks, nn.ModuleList),
        "fit.compile = 'blocks' needs a model that is made of blocks; set it to true or false",
    )
    return cast(nn.ModuleList, blocks)


class Run(Generic[Model, Batch]):
    """The state of a run and the loop that trains it."""

    def __init__(
        self,
        task: Task[Model, Batch],
        config: FitConfig,
        out: Path,
        recipe: str,
        device: torch.device,
        found: Found | None,
    ) -> None:
        """Begin a run in ``out``, or restore it from the checkpoint that was found."""
        self.task, self.config, self.out, self.recipe, self.device = task, config, out, recipe, device
        self.step, self.seconds = 0, 0.0
        self.precision = config.precision
        if self.precision == "auto":
            self.precision = "bfloat16" if self.once(lambda: bfloat16_pays(device)) else "float32"
        steps = RecordedStep if is_recorded(task, config, device) else TrainingStep
        self.model = task.model.to(device).train()
        auxiliary = task.auxiliary()
        if auxiliary is not None:
            auxiliary.network.to(device)
        loss, combine = self.prepare(auxiliary)
        optimizer = adamw(
            self.model,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            no_weight_decay=task.no_weight_decay,
        )
        self.learners = [Learner(self.model, optimizer, config.lr)]
        if config.compile:
            for module in _blocks(self.model) if config.compile == "blocks" else [self.model]:
                module.compile(dynamic=False)
        self.average = self.new_average() if config.ema_decay else None
        self.means = RunningMeans()
        self.parts: dict[str, Stateful] = {"model": self.model, "optimizer": optimizer, "means": self.means}
        if self.average is not None:
            self.parts["average"] = self.average
        self.parts |= {f"companion {name}": module.to(device) for name, module in task.companions().items()}
        self.norms = ["gradient_norm"]
        if auxiliary is not None:
            network, name, lr = auxiliary.network, auxiliary.name, auxiliary.lr or config.lr
            optimizer = adamw(network, lr=lr, betas=auxiliary.betas, weight_decay=auxiliary.weight_decay)
            self.learners.append(Learner(network, optimizer, lr))
            self.parts |= {name: network, f"{name} optimizer": optimizer}
            self.norms.append(f"{name}_gradient_norm")
        self.basis = task.basis()
        check(
            not config.patience or task.objective() is not None,
            "fit.patience needs a held-out loss to judge by, and with task.adversarial_weight there is none; set it "
            "to 0",
        )
        self.best = HeldOut(task.objective(), keep=self.writes and config.keep == "best", patience=config.patience)
        self.held_out: dict[str, float] = {}
        self.kept: int | None = None  # the step of the good checkpoint in checkpoint.pt
        if found is not None:
            check_same_basis(found.checkpoint.basis, self.basis, out)
            saved = self.laid_out(found)
            parts = self.parts | {"best": self.best} if "best" in saved.parts else self.parts
            restore(saved, parts, found.path)
            self.step, self.seconds = saved.step, saved.seconds
            self.kept = saved.step if found.path.name == CHECKPOINT_FILE else None
        self.parts["best"] = self.best
        self.taken = steps(
            loss, self.model, self.learners, config, device, self.precision, combine, task.end_step, self.average
        )
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        self.costs = Costs(task.amount(), config, parameters=trained, start=self.step, device=device)
        if self.writes:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / "recipe.toml", lambda partial: partial.write_text(recipe, encoding="utf-8"))

    writes = True
    """Whether this process writes the files of the run; of several, the first does."""

    def prepare(self, auxiliary: Auxiliary | None) -> tuple[Loss[Model, Batch], Combine]:
        """Prepare the networks for this process, before there are optimisers; return their loss."""
        return self.task.loss, alone

    def new_average(self) -> Average:
        """Return the moving average of the model, as it is now."""
        return ExponentialAverage(self.model, self.config.ema_decay)

    def laid_out(self, found: Found) -> Checkpoint:
        """Return a checkpoint with its tensors as this process holds them."""
        return found.checkpoint

    def read(self) -> Iterator[Batch]:
        """Return the examples that are left, a part of a batch at a time."""
        config = self.config
        return self.task.batches(self.step * config.batch_size, config.batch_size // config.accumulation)

    def once(self, make: Callable[[], Value]) -> Value:
        """Return what ``make`` returns, which only the process that writes calls."""
        return make()

    def stopped_by(self, interruption: Interruption) -> int:
        """Return the number of the signal that ends the run after this step, or 0."""
        return interruption.received

    def announce(self, progress: Progress) -> None:
        """Print where the run begins, and what it will cost."""
        out, config = self.out, self.config
        if self.best.forgotten:
            progress.log(f"{out} has not kept its best model so far: evaluations are compared from here on")
        if self.step:
            progress.log(f"continuing {out} after step {self.step} of {config.steps}")
        if config.precision == "auto":
            progress.log(f"training in {self.precision}, chosen by fit.precision = 'auto' for this device")
        if self.step < config.steps:
            for line in self.costs.before():
                progress.log(line)

    def train(self, interruption: Interruption, records: Records, progress: Progress) -> None:
        """Take the remaining steps, with evaluations and checkpoints in between, and save the model."""
        read = self.read()
        try:
            self.take_steps(Ahead(self.costs.timed(read), self.device), interruption, records, progress)
        finally:
            if isinstance(read, Generator):  # ends the processes that read images
                read.close()
        self.save_model()
        progress.log(f"finished {self.out}: {counted(self.step, 'step')} in {self.seconds:.0f} s; {self.described()}")

    def take_steps(
        self, batches: Ahead[Batch], interruption: Interruption, records: Records, progress: Progress
    ) -> None:
        """Take the remaining steps, with evaluations and checkpoints in between."""
        config = self.config
        failures = 0
        while True:
            if number := self.stopped_by(interruption):
                self.save_checkpoint(last=True)
                raise Interrupted(
                    f"stopped after step {self.step} of {config.steps}; the same command continues from {self.out}",
                    number,
                )
            self.evaluate_and_render(records, progress)
            if self.step == config.steps:
                break
            if self.best.exhausted:
                self.save_checkpoint(last=True)
                progress.warn(
                    f"ended after step {self.step} of {config.steps}: held-out {self.best.name} has not improved in "
                    f"{self.best.since} evaluations (fit.patience = {config.patience})"
                )
                break

            started = time.perf_counter()
            lr = learning_rate(
                self.step,
                peak=config.lr,
                steps=config.steps,
                warmup_steps=config.warmup_steps,
                schedule=config.schedule,
                final_fraction=config.final_lr_fraction,
            )
            loss, norm = self.update(batches, lr)
            seconds = time.perf_counter() - started
            self.step += 1
            self.seconds += seconds

            failures = 0 if math.isfinite(loss) and math.isfinite(norm) else failures + 1
            if failures:
                values = f"its loss is {loss:g}, the norm of its gradient {norm:g}"
                progress.warn(f"step {self.step} is skipped: {values}")
                self.means.count("skipped")
                if failures == _MAX_FAILURES:
                    self.give_up(f"step {self.step} is the {failures}th skipped step in a row: {values}", loss, norm)
            progress.advance(loss, seconds)
            for line in self.costs.observe(seconds):
                progress.log(line)
            self.means.add({"seconds_per_step": seconds})
            if self.due(config.log_every):
                means = self.means.take()
                rate = config.batch_size / means.pop("seconds_per_step")
                more = {"lr": lr, "pictures_per_second": rate, "seconds": self.seconds}
                records.write(self.step, "train", means | more)
            if self.due(config.checkpoint_every):
                self.save_checkpoint(last=self.step == config.steps)

    def update(self, batches: Ahead[Batch], lr: float) -> tuple[float, float]:
        """Take one step, or skip it if its loss or gradient is not finite.

        Args:
            batches: The training examples, one part of a batch at a time.
            lr: Learning rate of the model.

        Returns:
            The loss as reported, and the norm of the gradient before clipping.
        """
        values, reports = self.taken.take(islice(batches, self.config.accumulation), self.step, lr)
        batches.fetch()
        mean, *norms = values.tolist()  # waits for the device, once
        norm = math.hypot(*norms)
        if math.isfinite(mean) and math.isfinite(norm):
            if self.average is not None:
                self.average.updates += 1  # which this step has done on the device
            self.means.add({"loss": mean, **dict(zip(self.norms, norms, strict=True))})
            for report in reports:
                self.means.add(report)
        return mean, norm

    def give_up(self, what: str, loss: float, norm: float) -> None:
        """Save the batch of the last step, which was skipped, and end the run.

        Raises:
            ConfigError: Always; it names the batch. In processes that do not write it is a ``SystemExit``.
        """
        weights = self.whole_weights()
        step = LastStep(step=self.step, precision=self.precision, loss=loss, gradient_norm=norm, recipe=self.recipe)

        def end() -> None:
            kept = keep_bad_batch(self.out, self.task, self.config, step, weights)
            raise ConfigError(
                f"{self.out}: {what}; {kept}; lower fit.lr = {self.config.lr:g} or raise fit.warmup_steps, in another "
                "--out"
            )

        self.once(end)

    def whole_weights(self) -> dict[str, dict[str, Any]]:
        """Return the state of the modules that a step depends on, on the CPU; only the process that writes needs it."""
        return {
            name: {key: value.detach().cpu() for key, value in part.state_dict().items()}
            for name, part in self.parts.items()
            if isinstance(part, nn.Module)
        }

    def evaluate_and_render(self, records: Records, progress: Progress) -> None:
        """Evaluate the model and render a sample sheet, if they are due after this step."""
        if self.due(self.config.evaluate_every) or self.best.exhausted:
            with self.model_to_keep() as model:
                self.held_out = self.once(lambda: self.task.evaluate(model))
                warnings = self.best.observe(self.step, self.held_out, model)
            records.write(self.step, "held-out", self.held_out)
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.held_out.items())
            progress.log(f"step {self.step}, held out: {numbers}{self.best.compared()}")
            for warning in warnings:
                progress.warn(warning)
        if self.due(self.config.sheet_every) or self.best.exhausted:
            with self.model_to_keep() as model:
                self.once(lambda: records.sheet(self.step, self.task.sheet(model)))

    def due(self, every: int) -> bool:
        """Return whether something that happens every ``every`` steps, and at the end, is due after this step."""
        return self.step == self.config.steps or (every > 0 and self.step > 0 and self.step % every == 0)

    @contextlib.contextmanager
    def model_to_keep(self) -> Iterator[Model]:
        """Yield the model that is evaluated and saved, in evaluation mode: the moving average if there is one."""
        model = self.average.model if isinstance(self.average, ExponentialAverage) else self.model
        with torch.no_grad():
            yield model.eval()
        self.model.train()

    def save_checkpoint(self, *, last: bool = False) -> None:
        """Write ``checkpoint.pt``; with ``last`` it is whole when this returns."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        checkpoint = Checkpoint(step=self.step, seconds=self.seconds, recipe=self.recipe, parts=parts, basis=self.basis)
        write_checkpoint(self.out / CHECKPOINT_FILE, checkpoint, count=self.config.checkpoints, before=self.kept)
        self.kept = self.step

    def save_model(self) -> None:
        """Write ``model/``, and ``model-last/`` if the best evaluation was not the last one."""
        with self.model_to_keep() as model:
            self.once(lambda: self._save_kept(model))

    def _save_kept(self, model: Model) -> None:
        if not self.best.superseded:
            discard_last(self.out)
            self._save(model, RESULT, self.step, self.held_out)
            return
        if not_finite(model) is None:  # a run that has diverged has its best model all the same
            self._save(model, LAST, self.step, self.held_out)
        self.best.load_best(model)
        self._save(model, RESULT, self.best.step, self.best.metrics)

    def _save(self, model: Model, name: str, step: int, metrics: dict[str, float]) -> None:
        bad = not_finite(model)
        check(
            bad is None,
            f"{self.out}: the weights after step {step} are not finite ({bad}), so no model is saved; lower fit.lr = "
            f"{self.config.lr:g} or raise fit.warmup_steps, in another --out",
        )
        about = About(step=step, steps=self.step, keep=self.config.keep, patience=self.config.patience, metrics=metrics)

        def save(folder: Path) -> None:
            self.task.save(model, folder)
            about.write(folder)

        save_result(self.out, self.recipe, save, name=name)

    def described(self) -> str:
        """Return which model was saved, and where."""
        if not self.best.superseded:
            return f"the model is {self.out / RESULT}"
        return (
            f"the model in {self.out / RESULT} is that of step {self.best.step}, the best by held-out "
            f"{self.best.name} ({self.best.value:.4g}; at the end {self.held_out[self.best.name]:.4g}, "
            f"in {self.out / LAST})"
        )
