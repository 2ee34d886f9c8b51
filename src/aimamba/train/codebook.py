"""Keep every code of a codebook in use."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aimamba import distributed

_DECAY = 0.98  # of the moving average, per batch
_DEAD = 0.03  # below this fraction of an equal share, a code is dead


class CodebookUse(nn.Module):
    """Moving average of how often each code is used, and the revival of dead codes.

    A code that is not the nearest of any latent gets no gradient and would stay unused. When its average use falls
    below a few per cent of an equal share, its vector is replaced by a latent of the current batch (as in Jukebox,
    arXiv 2005.00341, section 3.1). Before the first batch all codes of a new codebook are unused, so it starts from the
    data. Those of a trained one begin with an equal share, so that they have time to be used before they are moved.
    """

    use: Tensor

    def __init__(self, codebook_size: int, *, trained: bool = False) -> None:
        super().__init__()
        self.register_buffer("use", torch.full((codebook_size,), float(trained)))  # 1 is an equal share

    @torch.no_grad()
    def revive(self, codebook: Float[Tensor, "v e"], latents: Float[Tensor, "m e"], rng: torch.Generator) -> None:
        """Replace the vectors of dead codes by finite latents, chosen at random without repetition.

        If there are fewer latents than dead codes, the first dead codes get them.

        Args:
            codebook: Codebook vectors; changed in place.
            latents: Latents of the current batch; of several processes, those of this one.
            rng: Random generator on the same device.
        """
        dead = (self.use < _DEAD).nonzero().squeeze(-1)
        if len(dead):
            latents = distributed.gathered(latents)
            latents = latents[latents.isfinite().all(dim=-1)]
            dead = dead[: len(latents)]
            chosen = torch.randperm(len(latents), generator=rng, device=latents.device)[: len(dead)]
            codebook[dead] = nn.functional.normalize(latents[chosen].to(codebook.dtype), dim=-1)
            self.use[dead] = 1.0

    @torch.no_grad()
    def observe(self, codes: Int[Tensor, "*b"]) -> None:
        """Update the moving average with the codes of a batch."""
        counts = distributed.total(torch.bincount(codes.flatten(), minlength=len(self.use)))
        self.use.lerp_(counts * (len(self.use) / (codes.numel() * distributed.size())), 1 - _DECAY)
