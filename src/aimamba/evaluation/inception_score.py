"""The Inception score (Salimans et al., arXiv 1606.03498), as ADM's evaluator computes it."""

import torch
from jaxtyping import Float
from torch import Tensor

SPLIT_SIZE = 5000


class InceptionScore:
    """``exp(mean KL(p(y|x) || p(y)))``, computed for each 5,000 images in the order of the set and averaged.

    Images sorted by class score lower, because each split then holds few classes.
    """

    def __init__(self, split_size: int = SPLIT_SIZE) -> None:
        """Start without images."""
        self._split_size = split_size
        self._finished: list[float] = []
        self._shares: Tensor
        self._begin()

    def add(self, logits: Float[Tensor, "b c"]) -> None:
        """Add a batch of images by the logits of their classes."""
        logs = logits.detach().cpu().double().log_softmax(dim=1)
        while len(logs):
            taken, logs = logs[: self._split_size - self._count], logs[self._split_size - self._count :]
            self._count += len(taken)
            self._negative_entropy += float((taken.exp() * taken).sum())
            self._shares = self._shares + taken.exp().sum(dim=0)
            if self._count == self._split_size:
                self._finished.append(self._score())
                self._begin()

    def value(self) -> float:
        """Return the mean over splits; the last may be shorter. Needs at least one image."""
        scores = self._finished + ([self._score()] if self._count else [])
        return sum(scores) / len(scores)

    def _begin(self) -> None:
        self._count, self._negative_entropy = 0, 0.0
        self._shares = torch.zeros((), dtype=torch.float64)

    def _score(self) -> float:
        marginal = self._shares / self._count
        information = self._negative_entropy / self._count - float(torch.xlogy(marginal, marginal).sum())
        return float(torch.tensor(information, dtype=torch.float64).exp())
