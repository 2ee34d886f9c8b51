"""What an image is conditioned on: a table of class vectors.

Shape letters: B batch, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """A table that is not yet filled."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class ClassCondition(nn.Module):
    """A table of class vectors with one more row for "no class".

    The generator asks two things of a condition: a vector (B, D) for what is wanted, and what to ask for to get the
    vector of wanting nothing (``nothing``).
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.null_class = num_classes
        self.table = empty_embedding(num_classes + 1, width)

    def forward(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Look the classes up."""
        return self.table(labels)
