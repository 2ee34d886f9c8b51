"""Decoding with recorded steps: one recording for each number of rows, kept for later calls.

A recording reads and writes a fixed memory, and the state that is being decoded lives there. When another state with
as many rows takes a step in between, the first state is copied out, and copied back when it continues.

Shape letters: B rows, V vocabulary.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.errors import DataError
from aimamba.generation.capture import Record, Run
from aimamba.generation.engines.recorded_step import Memory, RecordedStep
from aimamba.models import AiM, DecodingState
from aimamba.models.state import copy_rows, join_rows, mixer_bytes, select_rows

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(eq=False, repr=False)
class RecordedState:
    """The state of a ``RecordedEngine``, see ``DecodingState``.

    Attributes:
        engine: The engine that made it.
        rows: Number of rows (B).
        position_shift: See ``AiMConfig.decode_position_shift``; used while ``memory`` is absent.
        lowest: Lowest position of a row.
        highest: Highest position of a row.
        memory: The tensors. Absent while a recording holds them, and before the first step.
    """

    engine: "RecordedEngine"
    rows: int
    position_shift: int
    lowest: int = 0
    highest: int = 0
    memory: Memory | None = None

    @property
    def position(self) -> Int[Tensor, " b"]:
        """Tokens that each row has consumed, (B,)."""
        return self.tensors()["position"].clone()

    @property
    def nbytes(self) -> int:
        """Bytes that the mixers remember of all rows."""
        return mixer_bytes(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return everything remembered, by name; see ``DecodingState.tensors``."""
        return dict(self.engine.memory_of(self))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "RecordedState":
        """Return a new state that holds copies of ``tensors``; see ``DecodingState.with_tensors``.

        Waits for the device, to learn the positions.
        """
        return self._holding(copy_rows(tensors, self.tensors()))

    def select(self, rows: Int[Tensor, " k"]) -> "RecordedState":
        """Copy some rows, in the given order, into a new state. Waits for the device, to learn the positions."""
        return self._holding(select_rows(self.tensors(), rows))

    def join(self, others: Sequence[DecodingState]) -> "RecordedState":
        """Copy the rows of this state, followed by those of ``others``, into a new state.

        Waits for the device, to learn the positions.
        """
        return self._holding(join_rows(state.tensors() for state in (self, *others)))

    def _holding(self, memory: Memory) -> "RecordedState":
        position = memory["position"]
        lowest, highest = int(position.min()), int(position.max())
        return RecordedState(self.engine, len(position), self.position_shift, lowest, highest, memory)


@dataclass(eq=False)
class _Recording:
    """The memory of a number of rows, and the steps recorded on it by the number of cache entries that they read."""

    inputs: Tensor
    memory: Memory
    runs: dict[int, Run] = field(default_factory=dict)
    owner: "weakref.ref[RecordedState] | None" = None

    def resident(self) -> RecordedState | None:
        """Return the state that lives in the memory, unless it has been deleted."""
        return None if self.owner is None else self.owner()


def _in_turn(method: Method) -> Method:
    """Let threads take turns in the methods of an engine: a recording has one memory."""

    @wraps(method)
    def alone(self: "RecordedEngine", *arguments: Any, **settings: Any) -> Any:
        with self.turn:
            return method(self, *arguments, **settings)

    return cast(Method, alone)


class RecordedEngine:
    """Decodes with recorded steps, as ``AiM.init_state`` and ``AiM.step`` do. Several threads may use it.

    Args:
        step: The step to record.
        record: Converts a step on fixed tensors to one that repeats it. It may call the step several times. The
            identity function will do.
        kept: Number of recordings kept, the most recently used ones. Each has a memory for its rows.
    """

    def __init__(self, step: RecordedStep, record: Record, *, kept: int = 4) -> None:
        self.model: AiM = step.model
        self.guided_sample = step.operators.guided_sample
        self._step = step
        self._record = record
        self._kept = kept
        self._recordings: OrderedDict[int, _Recording] = OrderedDict()
        self._addresses = self._weight_addresses()
        self.turn = threading.RLock()

    @_in_turn
    def init_state(self, batch: int, *, position_shift: int | None = None) -> RecordedState:
        """Return the state of ``batch`` rows at position 0; see ``AiM.init_state``."""
        if (addresses := self._weight_addresses()) != self._addresses:  # cast or moved: recordings read the old weights
            while self._recordings:
                self._drop(next(iter(self._recordings)))
            self._step.renew()
            self._addresses = addresses
        shift = self.model.config.decode_position_shift if position_shift is None else position_shift
        return RecordedState(self, batch, shift)

    @_in_turn
    @torch.no_grad()
    def step(self, inputs: Int[Tensor, " b"] | Float[Tensor, "b p1 d"], state: RecordedState) -> Float[Tensor, "b v"]:
        """Feed one token of each row and return the logits of its next code; see ``AiM.step``.

        Raises:
            DataError: A row has consumed all tokens of an image.
        """
        if state.highest >= self.model.config.steps:
            tokens = self.model.config.num_tokens
            raise DataError(f"a row has taken all {tokens} tokens of an image; begin with a new state")
        recording = self._load(state)
        if inputs.is_floating_point():
            assert state.highest == 0, "openings are the input of rows at position 0 alone"
            self._step.begin(inputs, recording.memory)
        else:
            recording.inputs.copy_(inputs)
            if state.lowest == 0:
                self._step.begin(recording.inputs, recording.memory)
        logits = self._run(recording, self._step.places(state.highest))()
        recording.memory["position"].add_(1)
        state.lowest += 1
        state.highest += 1
        return logits.clone()

    @_in_turn
    def memory_of(self, state: RecordedState) -> Memory:
        """Return the tensors of a state, in a recording or outside; allocate those of a new one."""
        recording = self._recordings.get(state.rows)
        if recording is not None and recording.resident() is state:
            return recording.memory
        if state.memory is None:
            state.memory = self._step.new_memory(state.rows)
            state.memory["position_shift"].fill_(state.position_shift)
        return state.memory

    def _load(self, state: RecordedState) -> _Recording:
        """Return the recording for a state, with that state in its memory."""
        recording = self._recordings.get(state.rows)
        if recording is None:
            while len(self._recordings) >= self._kept:
                self._drop(next(iter(self._recordings)))
            with torch.inference_mode(False):  # otherwise a caller outside inference mode could not write to it
                memory = self._step.new_memory(state.rows)
                recording = _Recording(torch.zeros_like(memory["position"]), memory)
            self._recordings[state.rows] = recording
        self._recordings.move_to_end(state.rows)
        self._run(recording, self._step.places(state.highest))  # recorded before a state is loaded into the memory
        resident = recording.resident()
        if resident is state:
            return recording
        if resident is not None:
            resident.memory = {name: tensor.clone() for name, tensor in recording.memory.items()}
        if state.memory is None:
            recording.memory["position"].zero_()
            recording.memory["position_shift"].fill_(state.position_shift)
        else:
            for name, tensor in state.memory.items():
                recording.memory[name].copy_(tensor)
            state.memory = None
        recording.owner = weakref.ref(state)
        return recording

    def _run(self, recording: _Recording, places: int) -> Run:
        """Return the recorded step that reads ``places`` cache entries, and record it if needed.

        Recording runs the step on the memory, perhaps with a state in it. That is safe where ``places`` varies, for
        the attention mixer: a repeated step writes the same keys and values to the same places.
        """
        if places not in recording.runs:
            inputs, memory = recording.inputs, recording.memory
            recording.runs[places] = self._record(lambda: self._step(inputs, memory, places=places))
        return recording.runs[places]

    def _drop(self, rows: int) -> None:
        """Delete a recording. A state that lives in its memory takes the memory over."""
        recording = self._recordings.pop(rows)
        if (resident := recording.resident()) is not None:
            resident.memory = recording.memory

    def _weight_addresses(self) -> list[tuple[int, torch.dtype]]:
        return [(parameter.data_ptr(), parameter.dtype) for parameter in self.model.parameters()]
