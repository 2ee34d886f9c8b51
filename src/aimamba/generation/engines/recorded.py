"""Decoding with a recorded step: one recording for each number of rows, kept for later calls.

A recording has its own memory, which it reads and writes in place. The state that is being decoded lives there. When
another state of as many rows steps in between, the first one's tensors are copied out, and back when it goes on.

Shape letters: B rows, V vocabulary.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.errors import DataError
from aimamba.generation.engines.recorded_step import Memory, RecordedStep

Run = Callable[[], Tensor]
"""A step on fixed tensors, giving its logits."""


@dataclass(eq=False)
class RecordedState:
    """What decoding remembers of some rows. Made by ``RecordedEngine.init_state``; only the engine looks inside.

    Attributes:
        rows: Number of rows.
        position_shift: See ``AiMConfig.decode_position_shift``; of rows that have yet to begin.
        lowest: Position of the hindmost row.
        highest: Position of the foremost row.
        memory: The tensors, unless a recording holds them or no token was taken yet.
    """

    rows: int
    position_shift: int
    lowest: int = 0
    highest: int = 0
    memory: Memory | None = None


@dataclass(eq=False)
class _Recording:
    """The memory of some number of rows, and the steps recorded on it, by the places of the caches they look at."""

    inputs: Tensor
    memory: Memory
    runs: dict[int, Run] = field(default_factory=dict)
    owner: "weakref.ref[RecordedState] | None" = None

    def resident(self) -> RecordedState | None:
        """The state that lives in the memory now, if anyone still has it."""
        return None if self.owner is None else self.owner()


class RecordedEngine:
    """Decode with recorded steps; to ``generate`` it looks like the model.

    Args:
        step: What to record.
        record: Turns a step on fixed tensors into one that does the same each time it is called, and may call it
            several times to find out. The identity will do.
        kept: Recordings kept, the latest used; each has room for the memory of its rows.
    """

    def __init__(self, step: RecordedStep, record: Callable[[Run], Run], *, kept: int = 4) -> None:
        self.model = step.model
        self.guided_sample = step.operators.guided_sample  # draws as ``aimamba.ops.sampling.logits.guided_sample`` does
        self._step = step
        self._record = record
        self._kept = kept
        self._recordings: OrderedDict[int, _Recording] = OrderedDict()
        self._addresses = self._weight_addresses()

    def init_state(self, batch: int, *, position_shift: int | None = None) -> RecordedState:
        """Rows that have seen nothing yet; see ``AiM.init_state``."""
        if (addresses := self._weight_addresses()) != self._addresses:  # cast or moved: recordings point to the past
            while self._recordings:
                self._drop(next(iter(self._recordings)))
            self._addresses = addresses
        shift = self.model.config.decode_position_shift if position_shift is None else position_shift
        return RecordedState(batch, shift)

    @torch.no_grad()
    def step(self, inputs: Int[Tensor, " b"], state: RecordedState) -> Float[Tensor, "b v"]:
        """Take one token a row and give the logits of its next code; ``state`` is updated. See ``AiM.step``.

        Raises:
            DataError: A row has taken all tokens of an image.
        """
        if state.highest >= (tokens := self.model.config.num_tokens):
            raise DataError(f"a row has taken all {tokens} tokens of an image; begin with a new state")
        recording = self._take_in(state)
        recording.inputs.copy_(inputs)
        if state.lowest == 0:
            self._step.begin(recording.inputs, recording.memory, all_begin=state.highest == 0)
        logits = self._run(recording, self._step.places(state.highest))()
        recording.memory["position"].add_(1)
        state.lowest += 1
        state.highest += 1
        return logits.clone()

    def select(self, state: RecordedState, rows: Int[Tensor, " k"]) -> RecordedState:
        """Copy out some rows, in the order given; see ``AiMState.select``."""
        memory = {name: tensor[rows] for name, tensor in self._memory(state).items()}
        return self._resumed(memory, state.position_shift)

    def join(self, states: Sequence[RecordedState]) -> RecordedState:
        """Put the rows of several states together; see ``AiMState.join``."""
        memories = [self._memory(state) for state in states]
        joined = {name: torch.cat([memory[name] for memory in memories]) for name in memories[0]}
        return self._resumed(joined, states[0].position_shift)

    def position(self, state: RecordedState) -> Int[Tensor, " b"]:
        """Tokens that each row has taken so far."""
        return self._memory(state)["position"].clone()

    def _resumed(self, memory: Memory, position_shift: int) -> RecordedState:
        position = memory["position"]
        return RecordedState(len(position), position_shift, int(position.min()), int(position.max()), memory)

    def _memory(self, state: RecordedState) -> Memory:
        """The tensors of a state, wherever they are."""
        recording = self._recordings.get(state.rows)
        if recording is not None and recording.resident() is state:
            return recording.memory
        if state.memory is None:
            state.memory = self._step.new_memory(state.rows)
            state.memory["shift"].fill_(state.position_shift)
        return state.memory

    def _take_in(self, state: RecordedState) -> _Recording:
        """The recording for a state, with that state in its memory."""
        recording = self._recordings.get(state.rows)
        if recording is None:
            while len(self._recordings) >= self._kept:
                self._drop(next(iter(self._recordings)))
            with torch.inference_mode(False):  # else a caller without inference mode could not write to it
                memory = self._step.new_memory(state.rows)
                recording = _Recording(torch.zeros_like(memory["position"]), memory)
            self._recordings[state.rows] = recording
        self._recordings.move_to_end(state.rows)
        self._run(recording, self._step.places(state.highest))  # before anything lives in the memory
        resident = recording.resident()
        if resident is state:
            return recording
        if resident is not None:
            resident.memory = {name: tensor.clone() for name, tensor in recording.memory.items()}
        if state.memory is None:
            recording.memory["position"].zero_()
            recording.memory["shift"].fill_(state.position_shift)
        else:
            for name, tensor in state.memory.items():
                recording.memory[name].copy_(tensor)
            state.memory = None
        recording.owner = weakref.ref(state)
        return recording

    def _run(self, recording: _Recording, places: int) -> Run:
        """The recorded step.

        To record it anew while a state lives in the memory is safe where ``places`` counts: that is the attention
        mixer, for which a step taken again writes the same keys and values to the same places.
        """
        if places not in recording.runs:
            inputs, memory = recording.inputs, recording.memory
            recording.runs[places] = self._record(lambda: self._step(inputs, memory, places=places))
        return recording.runs[places]

    def _drop(self, rows: int) -> None:
        """Forget a recording; a state that lives there takes the memory along."""
        recording = self._recordings.pop(rows)
        if (resident := recording.resident()) is not None:
            resident.memory = recording.memory

    def _weight_addresses(self) -> list[tuple[int, torch.dtype]]:
        return [(parameter.data_ptr(), parameter.dtype) for parameter in self.model.parameters()]
