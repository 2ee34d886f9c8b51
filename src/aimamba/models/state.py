"""What the generator remembers between steps, row by row.

Shape letters: B rows, D width, N blocks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from aimamba.models.mamba2 import MixerState


@dataclass
class AiMState:
    """What decoding remembers: every tensor has the row as its first axis, and rows know nothing of each other.

    Attributes:
        position: Tokens each row has taken so far, (B,); 0 means that the class label comes next.
        modulation: Shift, scale and gate of every block for each row's class, (B, N, 3, D).
        final_modulation: Shift and scale of the final norm, (B, 2, D).
        mixers: Memory of each block.
        position_shift: See ``AiMConfig.decode_position_shift``.
    """

    position: Tensor
    modulation: Tensor
    final_modulation: Tensor
    mixers: list[MixerState]
    position_shift: int

    def select(self, rows: Int[Tensor, " k"]) -> "AiMState":
        """Copy out some rows, in the order given."""
        return AiMState(
            self.position[rows],
            self.modulation[rows],
            self.final_modulation[rows],
            [{key: value[rows] for key, value in mixer.items()} for mixer in self.mixers],
            self.position_shift,
        )

    @staticmethod
    def join(states: "list[AiMState]") -> "AiMState":
        """Put the rows of several states of one model together; they may stand at different positions."""
        assert len({state.position_shift for state in states}) == 1, "states of different position shifts"
        return AiMState(
            torch.cat([state.position for state in states]),
            torch.cat([state.modulation for state in states]),
            torch.cat([state.final_modulation for state in states]),
            [
                {key: torch.cat([mixer[key] for mixer in mixers]) for key in mixers[0]}
                for mixers in zip(*(state.mixers for state in states), strict=True)
            ],
            states[0].position_shift,
        )
