"""Causal regularisation of a tokenizer (CRT, arXiv 2412.16326): codes that follow from those before them.

A small network reads the vectors of an image's codes in raster order and predicts each from those before it. Its error
is part of the tokenizer's loss, so encoder and codebook learn codes that a generator predicts more easily. The network
here is made of this project's mixers; the paper's is a transformer.

Shape letters: B batch, L = h w codes of an image, E width of a codebook vector, D width of the network.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.models.initial import fill_uniform
from aimamba.models.mamba2 import Mamba2
from aimamba.models.norm import RMSNorm

_WIDTH = 128
_BLOCKS = 2


class NextVector(nn.Module):
    """Predicts codebook vectors in raster order: two Mamba-2 blocks between two projections. No saved model has it."""

    def __init__(self, vector_width: int, length: int) -> None:
        """Make a network without initial weights.

        Args:
            vector_width: Width of a codebook vector (E).
            length: Codes of an image (L).
        """
        super().__init__()
        with torch.device("meta"):  # draws no random numbers
            self.enter = nn.Linear(vector_width, _WIDTH, bias=False)
            self.places = nn.Parameter(torch.empty(length, _WIDTH))  # the first stands alone: nothing is read before it
            self.norms = nn.ModuleList(RMSNorm(_WIDTH) for _ in range(_BLOCKS + 1))
            self.mixers = nn.ModuleList(
                Mamba2(_WIDTH, inner=2 * _WIDTH, state_size=32, head_width=32, conv_width=4, chunk_size=64)
                for _ in range(_BLOCKS)
            )
            self.leave = nn.Linear(_WIDTH, vector_width)
        self.to_empty(device=torch.empty(0).device)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill places from N(0, 0.02^2), mixers as in ``Mamba2``, projections uniformly; the bias is 0."""
        for layer in (self.enter, self.leave):
            fill_uniform(layer.weight, generator)
        self.leave.bias.zero_()
        self.places.normal_(std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, Mamba2):
                module.init_weights(residual_scale=_BLOCKS**-0.5, generator=generator)
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)

    def predict(self, rows: Float[Tensor, "b l e"]) -> Float[Tensor, "b l e"]:
        """Predict each vector from those before it in its row."""
        hidden = F.pad(self.enter(rows[:, :-1]), (0, 0, 1, 0)) + self.places
        for norm, mixer in zip(self.norms, self.mixers, strict=False):
            hidden = hidden + mixer(norm(hidden))
        predicted: Tensor = self.leave(self.norms[-1](hidden))
        return predicted

    def forward(self, vectors: Float[Tensor, "b e h w"]) -> Float[Tensor, ""]:
        """Return the mean squared error of the predicted numbers; gradients reach what is read and what is predicted.

        Args:
            vectors: Vectors of the codes, as the decoder reads them.
        """
        rows = vectors.flatten(2).mT
        wide = torch.promote_types(rows.dtype, torch.float32)
        return F.mse_loss(self.predict(rows).to(wide), rows.to(wide))
