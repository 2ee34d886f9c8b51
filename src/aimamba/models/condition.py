"""What an image is conditioned on: a table of class vectors.

Shape letters: B batch, C classes, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aimamba.errors import ConfigError


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """Return an embedding table whose entries are not filled yet."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class ClassCondition(nn.Module):
    """A table of class vectors, and one more for the null class.

    The generator needs two things of a condition: ``forward``, which returns a vector (B, D) for each label or mixture,
    and ``null_class``, the label of the unconditional embedding.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.null_class = num_classes
        self.table = empty_embedding(num_classes + 1, width)

    def forward(self, labels: Int[Tensor, " b"] | Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        """Look up the vectors of classes, or mix them.

        Args:
            labels: Class labels; or the weights of every class (B, C), or (B, C + 1) with the null class as the last. A
                vector is the weighted sum of the classes' vectors.

        Raises:
            ConfigError: The number of weights is not that of the classes, or a weight is not finite.
        """
        if not labels.is_floating_point():
            return self.table(labels)
        self.check_mixtures(labels)
        # One row at a time and only its classes: a mixture of one class is that class to the bit, in every batch.
        return torch.stack([self._mixed(row) for row in labels])

    def check_mixtures(self, weights: Float[Tensor, "b c"]) -> None:
        """Check weights of classes, see ``forward``."""
        if weights.shape[-1] not in (self.null_class, self.null_class + 1):
            raise ConfigError(
                f"a mixture needs a weight for each of {self.null_class} classes, or one more for the null class, got "
                f"{weights.shape[-1]} weights"
            )
        if not bool(weights.isfinite().all()):
            raise ConfigError("the weights of a mixture of classes must be finite numbers, got NaN or infinity")

    def _mixed(self, weights: Float[Tensor, " c"]) -> Float[Tensor, " d"]:
        classes = weights.nonzero().flatten()
        vectors = self.table(classes)
        return (weights[classes, None].to(vectors.dtype) * vectors).sum(dim=0)
