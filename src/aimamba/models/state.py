"""The state of decoding: what is remembered between the steps of each row.

``DecodingState`` is the contract that the state of every engine keeps. ``AiMState`` is the state of the plain model
and of the native engine.

Shape letters: B rows, P prefix tokens, D width, N blocks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

MixerState = dict[str, Tensor]
"""What a mixer remembers between steps: named tensors whose first axis is the row."""


@runtime_checkable
class DecodingState(Protocol):
    """What an engine remembers of the rows that it decodes.

    The first axis of every tensor is the row, and no row depends on another: rows may join and leave between any two
    tokens, and may be at different positions. A state belongs to the engine that made it, or to another engine of the
    same kind for a model of the same shape.
    """

    @property
    def rows(self) -> int:
        """Number of rows (B)."""
        ...

    @property
    def position(self) -> Int[Tensor, " b"]:
        """Tokens that each row has consumed, with those of its opening, (B,)."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that the mixers remember of all rows. Positions and modulations do not count."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return everything remembered, by name; the first axis is the row.

        The tensors of mixers are named ``"{block}.{name}"``. None is copied, and the next step of any state of the
        engine may overwrite them.
        """
        ...

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "DecodingState":
        """Return a new state of the same engine that holds copies of ``tensors``.

        Args:
            tensors: Names, dtypes and shapes as ``tensors()`` returns them; the number of rows may differ.

        Raises:
            ValueError: The names differ.
        """
        ...

    def select(self, rows: Int[Tensor, " k"]) -> "DecodingState":
        """Copy some rows, in the given order, into a new state. A row may be repeated."""
        ...

    def join(self, others: "Sequence[DecodingState]") -> "DecodingState":
        """Copy the rows of this state, followed by those of ``others``, into a new state."""
        ...


def select_rows(tensors: Mapping[str, Tensor], rows: Int[Tensor, " k"]) -> dict[str, Tensor]:
    """Copy some rows of each tensor."""
    return {name: tensor[rows] for name, tensor in tensors.items()}


def join_rows(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the rows of tensors of the same names."""
    parts = list(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def copy_rows(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Copy all tensors.

    Raises:
        ValueError: Their names are not ``names``.
    """
    if differing := sorted(tensors.keys() ^ set(names)):
        raise ValueError(f"expected the tensors of a state of this engine; these names differ: {', '.join(differing)}")
    return {name: tensor.clone() for name, tensor in tensors.items()}


def mixer_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those tensors of a state that belong to mixers."""
    return {name: tensor for name, tensor in tensors.items() if "." in name}


def mixer_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that mixers remember."""
    return sum(tensor.nbytes for tensor in mixer_tensors(tensors).values())


@dataclass
class AiMState:
    """The state of ``AiM`` and of the native engine, see ``DecodingState``.

    Attributes:
        position: Tokens that each row has consumed, with those of its opening, (B,).
        position_shift: See ``AiMConfig.decode_position_shift``; (B,).
        opening: What each row takes before codes, (B, P + 1, D); see ``aimamba.models.condition``.
        modulation: Shift, scale and gate of every block for each row's class, (B, N, 3, D).
        final_modulation: Shift and scale of the final norm, (B, 2, D).
        mixers: Memory of each block's mixer.
        overwritten: Names of tensors of mixers that a row writes before it reads them, whatever they hold at first.
    """

    position: Tensor
    position_shift: Tensor
    opening: Tensor
    modulation: Tensor
    final_modulation: Tensor
    mixers: list[MixerState]
    overwritten: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """Number of rows (B)."""
        return len(self.position)

    @property
    def nbytes(self) -> int:
        """Bytes that the mixers remember of all rows."""
        return mixer_bytes(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return everything remembered, by name; see ``DecodingState.tensors``."""
        tensors = {
            "position": self.position,
            "position_shift": self.position_shift,
            "opening": self.opening,
            "modulation": self.modulation,
            "final_modulation": self.final_modulation,
        }
        for block, mixer in enumerate(self.mixers):
            tensors |= {f"{block}.{name}": tensor for name, tensor in mixer.items()}
        return tensors

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "AiMState":
        """Return a new state that holds copies of ``tensors``; see ``DecodingState.with_tensors``."""
        return self._holding(copy_rows(tensors, self.tensors()))

    def select(self, rows: Int[Tensor, " k"]) -> "AiMState":
        """Copy some rows, in the given order, into a new state."""
        return self._holding(select_rows(self.tensors(), rows))

    def join(self, others: Sequence[DecodingState]) -> "AiMState":
        """Copy the rows of this state, followed by those of ``others``, into a new state."""
        return self._holding(join_rows(state.tensors() for state in (self, *others)))

    def first(self, rows: int) -> "AiMState":
        """Return the first rows as a state that shares its tensors with this one."""
        return self._holding({name: tensor[:rows] for name, tensor in self.tensors().items()})

    def restart(self, row: int) -> None:
        """Put a row back to position 0, in place."""
        self.position[row] = 0
        for mixer in self.mixers:
            for name, tensor in mixer.items():
                if name not in self.overwritten:
                    tensor[row].zero_()

    def _holding(self, tensors: Mapping[str, Tensor]) -> "AiMState":
        mixers = [{name: tensors[f"{block}.{name}"] for name in mixer} for block, mixer in enumerate(self.mixers)]
        return AiMState(
            tensors["position"],
            tensors["position_shift"],
            tensors["opening"],
            tensors["modulation"],
            tensors["final_modulation"],
            mixers,
            self.overwritten,
        )
