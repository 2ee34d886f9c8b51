"""What an image is conditioned on: a table of class vectors.

Shape letters: B batch, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """Return an embedding table whose entries are not filled yet."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class ClassCondition(nn.Module):
    """A table of class vectors, and one more for the null class.

    The generator needs two things of a condition: ``forward``, which returns a vector (B, D) for each label, and
    ``null_class``, the label of the unconditional embedding.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.null_class = num_classes
        self.table = empty_embedding(num_classes + 1, width)

    def forward(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Look up the vectors of classes."""
        return self.table(labels)
