"""The input of the first block, for one token a row: the class vector, or the embedding of the latest code.

Shape letters: B rows, D width, V vocabulary, L places.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def embed_step(
    inputs: Int[Tensor, " b"],
    position: Int[Tensor, " b"],
    position_shift: Int[Tensor, " b"],
    condition: Float[Tensor, "b d"],
    words: Float[Tensor, "v d"],
    places: Float[Tensor, "l d"] | None,
) -> Float[Tensor, "b d"]:
    """Return the residual that enters the first block, in float32 or wider.

    Args:
        inputs: The latest code of each row; ignored for rows at position 0.
        position: Tokens that each row has consumed.
        position_shift: Added to the place of every code, which is one less than the position.
        condition: Class vector of each row, which is its input at position 0.
        words: Embeddings of codes.
        places: Embeddings of places, added to those of codes; None if there are none.
    """
    starting = position == 0
    hidden = words[inputs.masked_fill(starting, 0)]
    if places is not None:
        hidden = hidden + places[(position - 1 + position_shift).clamp(min=0)]
    hidden = torch.where(starting[:, None], condition, hidden)
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))
