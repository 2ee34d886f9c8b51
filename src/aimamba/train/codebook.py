"""Keeping every code of a codebook in use."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_MEMORY = 0.98  # of the running use, per batch
_DEAD = 0.03  # of the use that a code would have if all were used alike


class CodebookUse(nn.Module):
    """Running use of every code, and the revival of those that nobody takes.

    A code far from all latents gets no gradient and stays unused for good. When its running use falls below a few per
    cent of the even share it is put onto a latent of the present batch (as in Jukebox, arXiv 2005.00341, section 3.1).
    Before the first batch no code has been used, so the codebook begins on the data.
    """

    use: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("use", torch.zeros(codebook_size))  # 1 is the even share

    @torch.no_grad()
    def revive(self, codebook: Float[Tensor, "v e"], latents: Float[Tensor, "m e"], rng: torch.Generator) -> None:
        """Move dead rows of ``codebook`` onto finite latents drawn without repetition; as many as there are."""
        dead = (self.use < _DEAD).nonzero().squeeze(-1)
        if len(dead):
            latents = latents[latents.isfinite().all(dim=-1)]
            dead = dead[: len(latents)]
            drawn = torch.randperm(len(latents), generator=rng, device=latents.device)[: len(dead)]
            codebook[dead] = nn.functional.normalize(latents[drawn].to(codebook.dtype), dim=-1)
            self.use[dead] = 1.0

    @torch.no_grad()
    def observe(self, codes: Int[Tensor, "*b"]) -> None:
        """Count the codes of a batch."""
        counts = torch.bincount(codes.flatten(), minlength=len(self.use))
        self.use.lerp_(counts * (len(self.use) / codes.numel()), 1 - _MEMORY)
