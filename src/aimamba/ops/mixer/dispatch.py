"""The mixer of whole sequences that models run: the native kernel where it is supported, else plain operations.

Shape letters: see ``aimamba.ops.mixer.sequence``.
"""

from jaxtyping import Float
from torch import Tensor

from aimamba.ops.mixer import sequence as plain
from aimamba.ops.mixer.native import sequence as native
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.ssd.dispatch import ssd_scan


def mixer_sequence(
    projected: Float[Tensor, "b l z"], weights: MixerWeights, *, state_size: int, chunk_size: int = 64
) -> Float[Tensor, "b l e"]:
    """Compute ``aimamba.ops.mixer.sequence.mixer_sequence``, with its arguments and result, the fastest way.

    May compile the native kernel, which takes a few seconds. The plain form takes the SSD that
    ``aimamba.ops.ssd.dispatch`` chooses.
    """
    if native.unsupported(projected, weights, state_size) is None:
        return native.mixer_sequence(projected, weights, state_size=state_size)
    return plain.mixer_sequence(projected, weights, state_size=state_size, chunk_size=chunk_size, ssd=ssd_scan)
