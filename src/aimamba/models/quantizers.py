"""Quantisers: what turns latents into codes, and codes into the vectors that the decoder reads.

Each is stateless. ``VQModel`` keeps the codebook of those that have one, under the same name for all of them.

Shape letters: V codebook size, E width of a codebook vector, C channels of a latent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.quantize import (
    bound_to_levels,
    codes_to_levels,
    codes_to_signs,
    divergence_from_uniform,
    half_levels,
    levels_to_codes,
    nearest_code,
    relaxed_one_hot,
    sign_entropies,
    signs_to_codes,
)

QuantizerKind = Literal["learned", "ema", "fsq", "lfq", "gumbel"]
Average = Callable[[Tensor], Tensor]


class Relaxation(NamedTuple):
    """How ``gumbel`` mixes codebook vectors in a step of training.

    Attributes:
        uniform: Random numbers in [0, 1), (B, h, w, V).
        temperature: Of the softmax.
    """

    uniform: Tensor
    temperature: float


class Quantized(NamedTuple):
    """What a quantiser makes of latents.

    Attributes:
        vectors: The vectors of the codes, (*, E), with a straight-through gradient.
        codes: (*).
        losses: Codebook and commitment loss, stacked, neither weighted; 0 where a quantiser has none.
    """

    vectors: Tensor
    codes: Tensor
    losses: Tensor


class Quantizer(ABC):
    """The interface, and what most quantisers have in common.

    Attributes:
        channels: Channels of a latent (C).
        codebook: Where the codebook vectors come from: a ``parameter``, a ``buffer`` that training changes, or
            ``computed``.
        nearest: Whether a code is that of the nearest vector, so that an unused one may be moved to a latent.
    """

    codebook: Literal["parameter", "buffer", "computed"] = "computed"
    nearest = False

    def __init__(self, config: Any) -> None:
        """Take the sizes of a ``VQConfig``."""
        self.size: int = config.codebook_size
        self.channels: int = config.codebook_dim

    @abstractmethod
    def quantize(
        self, latents: Float[Tensor, "*b c"], codebook: Tensor | None, relaxation: Relaxation | None = None
    ) -> Quantized:
        """Replace latents in float32 or wider by vectors.

        Args:
            latents: Output of the encoder.
            codebook: The codebook (V, E), where there is one, in the dtype of the latents.
            relaxation: For ``gumbel`` in training.
        """

    @abstractmethod
    def vectors(self, codes: Int[Tensor, "*b"], codebook: Tensor | None, dtype: torch.dtype) -> Float[Tensor, "*b e"]:
        """Return the vectors of codes; ``dtype`` is that of vectors that are computed."""

    def penalties(
        self, latents: Float[Tensor, "*b c"], temperature: float, average: Average = lambda tensor: tensor
    ) -> dict[str, Tensor]:
        """Return further terms of the loss by name, each a scalar in nats, for the latents of a batch.

        Args:
            latents: In float32 or wider.
            temperature: For ``lfq``, see ``sign_entropies``.
            average: Averages a tensor over processes, with a gradient.
        """
        return {}


class LearnedCodebook(Quantizer):
    """The nearest of vectors of length 1 that are learned by their gradient (ViT-VQGAN, arXiv 2110.04627)."""

    codebook = "parameter"
    nearest = True

    def quantize(self, latents: Tensor, codebook: Tensor | None, relaxation: Relaxation | None = None) -> Quantized:
        """Scale latents to unit length and take the nearest vectors."""
        assert codebook is not None
        unit, rows = F.normalize(latents, dim=-1), F.normalize(codebook, dim=-1)
        codes = nearest_code(unit.detach().flatten(0, -2), rows.detach()).view(unit.shape[:-1])
        nearest = F.embedding(codes, rows)
        losses = torch.stack([F.mse_loss(nearest, unit.detach()), F.mse_loss(unit, nearest.detach())])
        return Quantized(unit + (nearest - unit).detach(), codes, losses)

    def vectors(self, codes: Tensor, codebook: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return codebook vectors of length 1."""
        assert codebook is not None
        return F.embedding(codes, F.normalize(codebook, dim=-1))


class AveragedCodebook(Quantizer):
    """The nearest of vectors that are moving averages of their latents (VQ-VAE, arXiv 1711.00937, A.1).

    ``aimamba.train.codebook`` computes the averages.
    """

    codebook = "buffer"
    nearest = True

    def quantize(self, latents: Tensor, codebook: Tensor | None, relaxation: Relaxation | None = None) -> Quantized:
        """Take the nearest vectors."""
        assert codebook is not None
        codes = nearest_code(latents.detach().flatten(0, -2), codebook, unit=False).view(latents.shape[:-1])
        nearest = F.embedding(codes, codebook)
        commitment = F.mse_loss(latents, nearest)
        losses = torch.stack([torch.zeros_like(commitment), commitment])
        return Quantized(latents + (nearest - latents).detach(), codes, losses)

    def vectors(self, codes: Tensor, codebook: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return codebook vectors."""
        assert codebook is not None
        return F.embedding(codes, codebook)


class FiniteScalar(Quantizer):
    """Each channel rounded to one of a few levels (FSQ, arXiv 2309.15505); the vectors lie in [-1, 1]."""

    def __init__(self, config: Any) -> None:
        """Take the levels too."""
        super().__init__(config)
        self.levels: tuple[int, ...] = config.levels

    def quantize(self, latents: Tensor, codebook: Tensor | None, relaxation: Relaxation | None = None) -> Quantized:
        """Squash and round."""
        bounded = bound_to_levels(latents, self.levels)
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = levels_to_codes(rounded.detach(), self.levels)
        return Quantized(rounded / self._scale(latents), codes, latents.new_zeros(2))

    def vectors(self, codes: Tensor, codebook: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the levels of codes."""
        integers = codes_to_levels(codes, self.levels).to(dtype)
        return integers / self._scale(integers)

    def _scale(self, like: Tensor) -> Tensor:
        return half_levels(self.levels, like.dtype, like.device)


class LookupFree(Quantizer):
    """The sign of each channel (LFQ, MAGVIT-v2, arXiv 2310.05737)."""

    def quantize(self, latents: Tensor, codebook: Tensor | None, relaxation: Relaxation | None = None) -> Quantized:
        """Take the signs."""
        codes = signs_to_codes(latents.detach())
        signs = codes_to_signs(codes, self.channels).to(latents.dtype)
        commitment = F.mse_loss(latents, signs)
        losses = torch.stack([torch.zeros_like(commitment), commitment])
        return Quantized(latents + (signs - latents).detach(), codes, losses)

    def vectors(self, codes: Tensor, codebook: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the signs of codes."""
        return codes_to_signs(codes, self.channels).to(dtype)

    def penalties(
        self, latents: Tensor, temperature: float, average: Average = lambda tensor: tensor
    ) -> dict[str, Tensor]:
        """Return ``code_entropy``, mean of the latents', and ``mean_entropy``, that of their mean distribution."""
        each, mean = sign_entropies(latents.flatten(0, -2), temperature, average)
        return {"code_entropy": each, "mean_entropy": mean}


class GumbelSoftmax(Quantizer):
    """Logits of all codes, which training relaxes to mixtures of codebook vectors (DALL-E, arXiv 2102.12092)."""

    codebook = "parameter"

    def __init__(self, config: Any) -> None:
        """A latent has a logit for each code."""
        super().__init__(config)
        self.channels = config.codebook_size

    def quantize(self, latents: Tensor, codebook: Tensor | None, relaxation: Relaxation | None = None) -> Quantized:
        """Mix codebook vectors by a random sample, or take the one with the largest logit.

        The gradient of the latter is that of the softmax.
        """
        assert codebook is not None
        codes = latents.detach().argmax(dim=-1)
        if relaxation is not None:
            vectors = relaxed_one_hot(latents, *relaxation) @ codebook
        else:
            vectors = F.embedding(codes, codebook)
            if latents.requires_grad:
                soft = F.softmax(latents, dim=-1)
                vectors = vectors + (soft - soft.detach()) @ codebook.detach()
        return Quantized(vectors, codes, latents.new_zeros(2))

    def vectors(self, codes: Tensor, codebook: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return codebook vectors."""
        assert codebook is not None
        return F.embedding(codes, codebook)

    def penalties(
        self, latents: Tensor, temperature: float, average: Average = lambda tensor: tensor
    ) -> dict[str, Tensor]:
        """Return ``kl``, the mean divergence of a latent's distribution over codes from the uniform one."""
        return {"kl": divergence_from_uniform(latents)}


_KINDS: dict[str, type[Quantizer]] = {
    "learned": LearnedCodebook,
    "ema": AveragedCodebook,
    "fsq": FiniteScalar,
    "lfq": LookupFree,
    "gumbel": GumbelSoftmax,
}


def make_quantizer(config: Any) -> Quantizer:
    """Return the quantiser of a ``VQConfig``."""
    return _KINDS[config.quantizer](config)
