"""What an image is conditioned on: a table of class vectors. ``aimamba.models.text`` adds captions.

Shape letters: B batch, C classes, D width, P prefix tokens.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aimamba.errors import ConfigError

Given = Int[Tensor, " b"] | Float[Tensor, "b c"] | Float[Tensor, "b p1 d"]
"""What is given for each image: a class, weights of all classes, or its opening, see ``ClassCondition``."""


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """Return an embedding table whose entries are not filled yet."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class ClassCondition(nn.Module):
    """A table of class vectors, and one more for the null class.

    The generator needs three things of a condition. ``opening`` returns the vectors that come before the codes of an
    image: the last one is the condition vector, from which the adaptive norms are computed, and those before it are
    prefix tokens. ``prefix_tokens`` is their number (P), the same for every image. ``null_class`` is the label of the
    unconditional case.
    """

    prefix_tokens = 0

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.null_class = num_classes
        self.table = empty_embedding(num_classes + 1, width)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill the table from N(0, 0.02^2)."""
        self.table.weight.normal_(std=0.02, generator=generator)

    def opening(self, given: Given, captions: Tensor | None = None) -> Float[Tensor, "b p1 d"]:
        """Return what comes before the codes of each image.

        Args:
            given: Class labels (B,), where ``null_class`` is none; mixtures, see ``forward``; or openings, which are
                returned.
            captions: A caption for each image, for a condition that takes them.

        Raises:
            ConfigError: Something does not fit.
        """
        if captions is not None:
            raise ConfigError("this generator takes classes and no captions")
        if given.ndim == 3:
            self.check_opening(given)
            return given
        return self(given)[:, None]

    def check_opening(self, opening: Float[Tensor, "b p1 d"]) -> None:
        """Check the shape of openings.

        Raises:
            ConfigError: It is another.
        """
        expected = (len(opening), self.prefix_tokens + 1, self.table.embedding_dim)
        if tuple(opening.shape) != expected:
            raise ConfigError(f"expected openings of shape {expected}, got {tuple(opening.shape)}")

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
