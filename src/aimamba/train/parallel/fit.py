"""``fit`` in each process of a team."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aimamba.distributed import Team
from aimamba.train.checkpoint import Found, Resolve, find_checkpoint, read_checkpoint
from aimamba.train.interruption import Interrupted, Interruption
from aimamba.train.lock import locked
from aimamba.train.memory import keep_freed_memory
from aimamba.train.parallel.layout import Layout, check_shares
from aimamba.train.parallel.run import ManyRun
from aimamba.train.records import NoRecords, Records
from aimamba.train.result import is_finished, remove_old_drafts
from aimamba.train.settings import FitConfig
from aimamba.train.task import Batch, Model, Task
from aimamba.train.tracking import NoProgress, Progress


def fit_many(
    task: Task[Model, Batch] | Callable[[], Task[Model, Batch]],
    config: FitConfig,
    out: Path,
    text: str,
    resolve: Resolve,
    team: Team,
    layout: Layout,
    *,
    tensorboard: bool,
    quiet: bool,
) -> bool:
    """Train a run with many processes; see ``fit``, of which this has the arguments and the errors.

    Returns:
        Whether the run was finished already.
    """
    check_shares(config, team.place.size)
    with contextlib.ExitStack() as stack:
        first: list[Found] = []

        def begin() -> list[Any]:
            if is_finished(out, text, config.steps, resolve):
                return [True, None]
            stack.enter_context(locked(out))
            remove_old_drafts(out)
            found = find_checkpoint(out, text, config.steps, resolve, whole=False)
            first.extend([found] if found else [])
            return [False, found.path.name if found else None]

        finished, name = team.shared(begin)
        if finished:
            return True
        keep_freed_memory()
        found = first[0] if first else None
        if name is not None and found is None:
            found = Found(read_checkpoint(out / name, whole=False, verify=False), out / name)
        prepared = team.in_turn(task) if callable(task) else task
        stack.enter_context(team.losses_named())
        interruption = stack.enter_context(Interruption(lasting=True))
        run = ManyRun(prepared, config, out, text, team, layout, interruption, found)
        records: Records = NoRecords()
        progress: Progress = NoProgress(steps=config.steps, start=run.step, batch_size=config.batch_size)
        if team.is_first:
            records = Records(out, step=run.step, tensorboard=tensorboard)
            progress = Progress(steps=config.steps, start=run.step, batch_size=config.batch_size, quiet=quiet)
        stack.enter_context(records)
        stack.enter_context(progress)
        run.announce(progress)
        if team.is_first and run.step < config.steps:
            progress.log(f"{team.place.size} processes: {layout.replicate} x {layout.shard} (copies x shards)")
        try:
            run.train(interruption, records, progress)
        except Interrupted as stopped:  # in all processes, after the same step
            team.disband()
            if team.is_first:
                raise
            raise SystemExit(stopped.exit_code) from stopped
    return False
