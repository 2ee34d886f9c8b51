"""Rows of a decoding batch that come and go between two tokens, without a copy of those that stay.

Shape letters: R rows, V vocabulary.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.generation.engines import Engine
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.models import AiMState

_FEWEST = 8  # rows that memory is made for


@runtime_checkable
class Rows(Protocol):
    """Rows in order, each at its own position."""

    def __len__(self) -> int:
        """Return the number of rows (R)."""
        ...

    def append(self) -> None:
        """Add a row at the end, to be put at position 0 by ``restart``."""
        ...

    def restart(self, row: int, begun: Mapping[str, Tensor]) -> None:
        """Put a row at position 0, with the condition of one image, see ``AiM.begun``."""
        ...

    def move(self, source: int, target: int) -> None:
        """Put row ``source`` in the place of row ``target``; then ``source`` is to be removed or restarted."""
        ...

    def pop(self) -> None:
        """Remove the last row."""
        ...

    def step(self, inputs: Int[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """Feed one token of each row and return the logits of its next code.

        Args:
            inputs: The latest code of a row; ``BEGUN`` for one that takes a vector of its opening.
        """
        ...


def make_rows(engine: Engine) -> Rows:
    """Return an empty batch of an engine's rows."""
    return RecordedRows(engine) if isinstance(engine, RecordedEngine) else PackedRows(engine)


@torch.no_grad()
def _begin(tensors: Mapping[str, Tensor], row: int, begun: Mapping[str, Tensor]) -> None:
    for name, value in begun.items():
        tensors[name][row] = value[0]


class PackedRows:
    """Rows of an engine that computes any number of them: the first ones of a memory that grows when it is full."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._count = 0
        self._memory = self._made(_FEWEST)

    def __len__(self) -> int:
        return self._count

    def append(self) -> None:
        """See ``Rows``."""
        if self._count == self._memory.rows:
            self._memory = self._memory.join([self._made(self._count)])
        self._count += 1

    def restart(self, row: int, begun: Mapping[str, Tensor]) -> None:
        """See ``Rows``."""
        self._memory.restart(row)
        _begin(self._memory.tensors(), row, begun)

    def move(self, source: int, target: int) -> None:
        """See ``Rows``."""
        if source != target:
            for tensor in self._memory.tensors().values():
                tensor[target] = tensor[source]

    def pop(self) -> None:
        """See ``Rows``."""
        self._count -= 1

    def step(self, inputs: Int[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """See ``Rows``."""
        state = self._memory.first(self._count)
        before, memory = state.tensors(), self._memory.tensors()
        logits = self._engine.step(inputs, state)
        for name, tensor in state.tensors().items():
            if tensor is not before[name]:  # a new one in its place
                memory[name][: self._count] = tensor
        return logits

    def _made(self, rows: int) -> AiMState:
        state = self._engine.init_state(rows)
        assert isinstance(state, AiMState)
        return state


class RecordedRows:
    """Rows of an engine that repeats recorded steps, each for a fixed number of rows.

    The numbers are powers of two, so that few steps have to be recorded. Places of the memory that hold no row take
    part in every step, and what comes out of them is dropped.
    """

    def __init__(self, engine: RecordedEngine) -> None:
        self._engine = engine
        self._state = engine.init_state(_FEWEST)
        self._device = engine.model.word_embedding.weight.device
        self._places: list[int] = []  # of the rows, in order
        self._positions: list[int] = []

    def __len__(self) -> int:
        return len(self._places)

    def append(self) -> None:
        """See ``Rows``."""
        capacity = self._state.rows
        if len(self) == capacity:
            self._state = self._state.join([self._engine.init_state(capacity)])
        self._places.append(min(set(range(self._state.rows)) - set(self._places)))
        self._positions.append(0)

    def restart(self, row: int, begun: Mapping[str, Tensor]) -> None:
        """See ``Rows``."""
        self._positions[row] = 0
        tensors, place = self._state.tensors(), self._places[row]
        tensors["position"][place] = 0
        _begin(tensors, place, begun)

    def move(self, source: int, target: int) -> None:
        """See ``Rows``."""
        for of_rows in (self._places, self._positions):
            of_rows[source], of_rows[target] = of_rows[target], of_rows[source]

    def pop(self) -> None:
        """See ``Rows``."""
        self._places.pop()
        self._positions.pop()
        if self._state.rows // 2 >= _FEWEST and len(self) <= self._state.rows // 4:
            free = [place for place in range(self._state.rows) if place not in self._places]
            kept = (self._places + free)[: self._state.rows // 2]
            self._state = self._state.select(torch.tensor(kept, device=self._device))
            self._places = list(range(len(self)))

    def step(self, inputs: Int[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """See ``Rows``."""
        state = self._state
        places = torch.tensor(self._places, device=self._device)
        unused = torch.ones(state.rows, dtype=torch.bool, device=self._device).index_fill_(0, places, False)
        state.tensors()["position"].masked_fill_(unused, 1)  # neither a beginning nor the end of an image
        positions = self._positions + ([1] if len(self) < state.rows else [])
        state.lowest, state.highest = min(positions), max(positions)
        everywhere = inputs.new_zeros(state.rows).index_copy_(0, places, inputs)
        logits = self._engine.step(everywhere, state)[places]
        self._positions = [position + 1 for position in self._positions]
        return logits
