"""The training loop: one for all stages, in one process or in a team of them.

A run is a folder with ``recipe.toml`` (its settings), ``metrics.jsonl`` and ``sheets/`` (its progress),
``checkpoint.pt`` (its state) and ``model/`` (its result: the model of the best evaluation, or the last one). After any
interruption, the command that began a run continues it exactly: examples depend only on seed and position, random
numbers only on seed and step, and everything else is in the checkpoint. Exactly means bit for bit, on the same device
with the same number of threads, as long as the operations are deterministic.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from aimamba.config import to_mapping
from aimamba.distributed import Team
from aimamba.train.checkpoint import (
    Resolve,
    find_checkpoint,
)
from aimamba.train.interruption import Interruption
from aimamba.train.lock import check_one_process, locked
from aimamba.train.memory import keep_freed_memory
from aimamba.train.parallel.layout import Layout
from aimamba.train.records import Records
from aimamba.train.result import (
    RESULT,
    discard_old_result,
    is_finished,
    read_about,
    remove_old_drafts,
)
from aimamba.train.run import Run
from aimamba.train.settings import FitConfig
from aimamba.train.task import Batch, Model, Task
from aimamba.train.tensorboard import TensorBoard, require_tensorboard
from aimamba.train.toml import to_toml
from aimamba.train.tracking import Progress, read_metrics

__all__ = ["FitConfig", "Result", "fit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run.

    Attributes:
        model: Folder of the finished model.
        steps: Number of steps that the run took; fewer than ``fit.steps`` if ``fit.patience`` ended it.
        step: Number of steps after which the model was taken.
        metrics: Its metrics on held-out examples.
    """

    model: Path
    steps: int
    step: int
    metrics: dict[str, float]


def fit(
    task: Task[Model, Batch] | Callable[[], Task[Model, Batch]],
    config: FitConfig,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    recipe: Mapping[str, Any] | None = None,
    resolve: Resolve = lambda recipe: recipe,
    tensorboard: bool = False,
    quiet: bool = False,
    team: Team | None = None,
    layout: Layout | None = None,
) -> Result:
    """Train ``task.model`` in the run folder ``out``, or continue the run that is there.

    If the run is finished, this only returns its result. A finished run can be extended by a larger ``config.steps``;
    from then on it follows the schedule of the longer run. A step whose loss or gradient is NaN or infinite is skipped;
    five such steps in a row end the run. So does ``config.patience``, if the held-out loss does not improve.

    Memory that the process frees is kept for reuse (see ``train.memory``).

    Args:
        task: The task, or a function that prepares it, which is called only if there are steps left to train.
        config: Settings of the loop.
        out: Folder of the run.
        device: Where to train.
        recipe: The other settings of the run, for ``recipe.toml``; ``config`` becomes its section ``fit``.
        resolve: Fills in the defaults of a recipe, because one that an older version wrote may not have all settings.
        tensorboard: Whether to write metrics and sheets for TensorBoard too.
        quiet: Whether to print warnings only, and no progress.
        team: The processes that train together, each of which calls this; None where this is the only one.
        layout: How they share the model; by default each has a copy.

    Returns:
        The finished model's folder and its metrics.

    Raises:
        ConfigError: ``out`` holds another run, another process is training there, the training diverged, or TensorBoard
            is not installed.
        CheckpointError: The checkpoint in ``out`` is damaged or does not fit the task.
        Interrupted: The run was interrupted by Ctrl-C or SIGTERM and has been saved.
        LostError: Another process of the team has ended or hangs.
        SystemExit: In the others, where the first process of the team reports one of these errors for all.
    """
    if team is None:
        check_one_process()
    if tensorboard:
        require_tensorboard()
    text = to_toml({**(recipe or {}), "fit": to_mapping(config)})
    if team is not None:
        from aimamba.train.parallel.fit import fit_many  # noqa: PLC0415 - takes seconds to import

        def finish() -> dict[str, Any]:
            return _plain(_report_finished(out, config, tensorboard=tensorboard, quiet=quiet))

        options = {"tensorboard": tensorboard, "quiet": quiet}
        layout = layout or Layout(team.place.size, 1)
        if fit_many(task, config, out, text, resolve, team, layout, **options):
            return _unplain(team.shared(finish))
        return _unplain(team.shared(lambda: _plain(_result(out, config))))
    if is_finished(out, text, config.steps, resolve):
        return _report_finished(out, config, tensorboard=tensorboard, quiet=quiet)
    keep_freed_memory()
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # on which Triton launches kernels
    with locked(out):
        remove_old_drafts(out)
        saved = find_checkpoint(out, text, config.steps, resolve)
        run = Run(task() if callable(task) else task, config, out, text, device, saved)
        _train(run, tensorboard=tensorboard, quiet=quiet)
    return _result(out, config)


def _report_finished(out: Path, config: FitConfig, *, tensorboard: bool, quiet: bool) -> Result:
    """Say that the run is finished, tidy up after one that was killed then, and return its result."""
    if not quiet:
        print(_finished(out, config.steps), file=sys.stderr)
    discard_old_result(out)
    if tensorboard:
        TensorBoard(out, step=config.steps + 1).close()
    return _result(out, config)


def _result(out: Path, config: FitConfig) -> Result:
    if (about := read_about(out)) is not None:
        return Result(model=out / RESULT, steps=about.steps, step=about.step, metrics=about.metrics)
    held_out = [line for line in read_metrics(out / "metrics.jsonl") if line["split"] == "held-out"]
    last = {name: math.nan if value is None else value for name, value in (held_out or [{}])[-1].items()}
    metrics = {name: value for name, value in last.items() if name not in ("step", "split")}
    return Result(model=out / RESULT, steps=config.steps, step=config.steps, metrics=metrics)


def _plain(result: Result) -> dict[str, Any]:
    return {**dataclasses.asdict(result), "model": str(result.model)}


def _unplain(values: dict[str, Any]) -> Result:
    return Result(**{**values, "model": Path(values["model"])})


def _finished(out: Path, steps: int) -> str:
    about = read_about(out)
    if about is not None and about.steps < steps:
        return (
            f"{out} is finished: fit.patience = {about.patience} ended it after step {about.steps} of {steps}; "
            "raise it, or set it to 0, to train on"
        )
    return f"{out} is finished: {steps} steps; raise fit.steps (--steps) to train on"


def _train(run: Run[Any, Any], *, tensorboard: bool, quiet: bool) -> None:
    """Open the files of a run and train it to its end."""
    config = run.config
    with (
        Interruption() as interruption,
        Records(run.out, step=run.step, tensorboard=tensorboard) as records,
        Progress(steps=config.steps, start=run.step, batch_size=config.batch_size, quiet=quiet) as progress,
    ):
        run.announce(progress)
        run.train(interruption, records, progress)
