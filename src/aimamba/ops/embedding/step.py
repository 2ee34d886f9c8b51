"""The input of the first block, for one token a row: a vector of the opening, or the embedding of the latest code.

Shape letters: B rows, P prefix tokens, D width, V vocabulary, L places.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def embed_step(
    inputs: Int[Tensor, " b"],
    position: Int[Tensor, " b"],
    position_shift: Int[Tensor, " b"],
    opening: Float[Tensor, "b p1 d"],
    words: Float[Tensor, "v d"],
    places: Float[Tensor, "l d"] | None,
) -> Float[Tensor, "b d"]:
    """Return the residual that enters the first block, in float32 or wider.

    Args:
        inputs: The latest code of each row; ignored for rows that take a vector of their opening.
        position: Tokens that each row has consumed.
        position_shift: Added to the place of every code, which is P + 1 less than the position.
        opening: The inputs of each row at positions 0 to P.
        words: Embeddings of codes.
        places: Embeddings of places, added to those of codes; None if there are none.
    """
    prefix = opening.shape[1] - 1
    opened = position > prefix
    hidden = words[inputs.masked_fill(~opened, 0)]
    if places is not None:
        hidden = hidden + places[(position - 1 - prefix + position_shift).clamp(min=0)]
    rows = torch.arange(len(inputs), device=inputs.device)
    hidden = torch.where(opened[:, None], hidden, opening[rows, position.clamp(max=prefix)])
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))
