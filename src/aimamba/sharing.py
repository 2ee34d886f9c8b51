"""Work that the processes of a command share: units of a fixed size, each taken by whichever process is free.

A unit is for instance a batch of images. It is the same whatever the number of processes, and so is its result; one
process does all of them and pays nothing.
"""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor
from torch import distributed as dist

from aimamba.cluster.workers import Cluster
from aimamba.distributed import Team

Value = TypeVar("Value")

_AHEAD = 3  # units for each process that may be finished before the first one has taken them
_REPORTS = 0.2  # seconds between two reports of progress
_LOOKS = 0.05  # seconds between two looks for results, at most


class Sharing:
    """The processes that share the work of a command.

    Attributes:
        team: The processes; None if there is one.
        cluster: Where this process lets units be computed; None if it computes them itself.
        is_first: Whether this process prints and writes.
        is_first_here: Whether it is the first one on its machine.
    """

    def __init__(self, team: Team | None = None, cluster: Cluster | None = None) -> None:
        self.team, self.cluster = team, cluster
        self.is_first = team is None or team.is_first
        self.is_first_here = team is None or team.place.local_rank == 0

    def once(self, make: Callable[[], Value]) -> Value:
        """Call ``make`` in the first process, and return its result, which JSON can hold, in all; see ``Team.shared``.

        Raises:
            SystemExit: ``make`` has failed; the first process raises its error.
        """
        return make() if self.team is None else self.team.shared(make)

    def in_first(self, make: Callable[[], Value], otherwise: Value) -> Value:
        """Call ``make`` in the first process and return its result; the others wait, and return ``otherwise``.

        Raises:
            SystemExit: ``make`` has failed; the first process raises its error.
        """
        found = [otherwise]

        def keep() -> None:
            found[0] = make()

        self.once(keep)
        return found[0]

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """Call ``make`` in every process, in the first one first; see ``Team.in_turn``."""
        return make() if self.team is None else self.team.in_turn(make)

    def units(self, count: int, show: Callable[[int], object] | None = None) -> "Units":
        """Return units to share; every process calls this in the same order.

        Args:
            count: Number of units.
            show: Called in the first process with the amount of work that all have done since the last call.
        """
        return Units(count, self.team, show)

    def union(self, known: Int32[np.ndarray, "..."]) -> Int32[np.ndarray, "..."]:
        """Return in all processes the numbers, 0 or more, that any of them knows; what is not known is -1."""
        if self.team is None:
            return known
        self.units(0).finish()  # collective operations wait where no signal is answered
        found = torch.from_numpy(known)
        with self.team.losses_named():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return known


ALONE = Sharing()
"""One process, which does everything."""


class Units:
    """Units of work, numbered from 0; iterating takes the numbers of those that this process is to do."""

    def __init__(self, count: int, team: Team | None, show: Callable[[int], object] | None = None) -> None:
        """Prepare; see ``Sharing.units``."""
        self._count, self._team = count, team
        self._show = show or (lambda _: None)
        self._key = "" if team is None else team.new_key("units")
        self._taken: deque[int] = deque()  # by this process, with results that have not been handed over
        self._own, self._unreported, self._shown, self._reported = 0, 0, 0, time.monotonic()

    def __iter__(self) -> Iterator[int]:
        """Take units, in rising order, until none is left."""
        if self._team is None:
            yield from range(self._count)
            return
        while (number := self._add("next", 1) - 1) < self._count:
            self._team.watch.progress()
            self._taken.append(number)
            yield number

    def advance(self, amount: int) -> None:
        """Note work that this process has done, in any measure; the first one shows that of all."""
        self._own += amount
        if self._team is None:
            self._show(amount)
            return
        self._unreported += amount
        if time.monotonic() > self._reported + _REPORTS:
            self._report()

    @property
    def done(self) -> int:
        """The work that all processes have reported, and this one has done."""
        if self._team is None:
            return self._own
        with suppress(RuntimeError):  # the store is gone
            self._report()
            return self._add("done", 0)
        return self._own

    def finish(self) -> None:
        """Wait until every process has come here; the work of the others is shown meanwhile."""
        if self._team is None:
            return
        self._report()
        self._add("finished", 1)

        def all_are_here() -> bool:
            if self._team is not None and self._team.is_first:
                self._report()
            return self._add("finished", 0) >= size

        size = self._team.place.size
        with self._team.watch.patient():
            self._team.wait(all_are_here)
        if self._team.is_first:
            self._report()

    def in_order(self, own: Iterator[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
        """Yield the results of all units in order in the first process; in the others yield nothing and send theirs.

        Args:
            own: Computes the units that this process takes, in that order; tensors on the host. It is driven by this
                iterator, which every process has to exhaust.
        """
        if self._team is None:
            yield from own
        elif self._team.is_first:
            with self._team.losses_named():
                yield from self._collect(self._team, own)
        else:
            with self._team.losses_named():
                self._send(self._team, own)

    def _collect(self, team: Team, own: Iterator[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
        waiting: dict[int, Sequence[Tensor]] = {}
        for wanted in range(self._count):

            def is_there(number: int = wanted) -> bool:
                return team.store.check([f"{self._key}/{number}"]) or self._may_take(number)

            while wanted not in waiting:
                with team.watch.patient():
                    team.wait(is_there, longest=_LOOKS)
                if team.store.check([f"{self._key}/{wanted}"]):
                    waiting[wanted] = _receive(json.loads(team.store.get(f"{self._key}/{wanted}")))
                    team.store.delete_key(f"{self._key}/{wanted}")
                elif (result := next(own, None)) is not None:
                    waiting[self._taken.popleft()] = result
            self._add("collected", 1)
            yield waiting.pop(wanted)

    def _may_take(self, wanted: int) -> bool:
        """Return whether the first process has work to do itself while a unit is not there."""
        if self._taken:
            return True
        following = self._add("next", 0)
        return following < min(self._count, wanted + self._ahead)

    def _send(self, team: Team, own: Iterator[Sequence[Tensor]]) -> None:
        sent: deque[tuple[int, dist.Work | None, Tensor]] = deque()

        def collected(number: int) -> bool:
            return self._add("collected", 0) > number

        for result in own:
            number = self._taken.popleft()
            parts = [part.detach().cpu().contiguous() for part in result]
            content = torch.cat([part.view(-1).view(torch.uint8) for part in parts])
            sent.append((number, dist.isend(content, 0), content))
            about = [[str(part.dtype).removeprefix("torch."), list(part.shape)] for part in parts]
            team.store.set(f"{self._key}/{number}", json.dumps({"from": team.place.rank, "parts": about}))
            with team.watch.patient():
                team.wait(partial(collected, number - self._ahead), longest=_LOOKS)
            while sent and collected(sent[0][0]):
                _wait_for(sent.popleft())
        with team.watch.patient():
            while sent:
                team.wait(partial(collected, sent[0][0]), longest=_LOOKS)
                _wait_for(sent.popleft())

    @property
    def _ahead(self) -> int:
        return _AHEAD * (1 if self._team is None else self._team.place.size)

    def _report(self) -> None:
        """Tell the store what this process has done; the first one shows what all have."""
        amount, self._unreported, self._reported = self._unreported, 0, time.monotonic()
        total = self._add("done", amount)
        if self._team is not None and self._team.is_first and total > self._shown:
            shown, self._shown = self._shown, total
            self._show(total - shown)

    def _add(self, name: str, amount: int) -> int:
        assert self._team is not None
        return int(self._team.store.add(f"{self._key}/{name}", amount))


def _wait_for(sending: tuple[int, "dist.Work | None", Tensor]) -> None:
    if sending[1] is not None:
        sending[1].wait()


def _receive(about: dict[str, Any]) -> list[Tensor]:
    """Receive what another process has begun to send."""
    layout = [(getattr(torch, name), tuple(shape)) for name, shape in about["parts"]]
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in layout]
    content = torch.empty(sum(sizes), dtype=torch.uint8)
    dist.recv(content, about["from"])
    return [
        part.clone().view(dtype).view(shape) for part, (dtype, shape) in zip(content.split(sizes), layout, strict=True)
    ]
