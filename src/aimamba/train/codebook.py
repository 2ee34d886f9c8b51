"""Keep every code of a codebook in use, and codebooks that are moving averages."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aimamba import distributed

_DECAY = 0.98  # of the moving average, per batch
_DEAD = 0.03  # below this fraction of an equal share, a code is dead
_SMOOTHING = 1e-5  # latents that are added to each code: Laplace smoothing


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
            self._move(codebook, dead, latents[chosen].to(codebook.dtype))
            self.use[dead] = 1.0

    def _move(self, codebook: Tensor, dead: Tensor, latents: Tensor) -> None:
        codebook[dead] = nn.functional.normalize(latents, dim=-1)

    @torch.no_grad()
    def observe(self, codes: Int[Tensor, "*b"], latents: Float[Tensor, "*b e"] | None = None) -> None:
        """Update the moving average with the codes of a batch, and of the latents that they stand for."""
        counts = distributed.total(torch.bincount(codes.flatten(), minlength=len(self.use)))
        self.use.lerp_(counts * (len(self.use) / (codes.numel() * distributed.size())), 1 - _DECAY)

    def end_step(self, codebook: Tensor | None, skip: Tensor) -> None:
        """End a step of training, whose parts were all observed; see ``Task.end_step``."""


class CodebookAverages(CodebookUse):
    """The codebook of the quantiser ``ema``: each vector is the moving average of its latents.

    With the number n and the sum s of the latents that have a code in a step, of all parts of the batch and all
    processes, N = decay N + (1 - decay) n and S = decay S + (1 - decay) s; the vector is S / N (van den Oord et al.,
    arXiv 1711.00937, A.1). N is smoothed, so that a code that is hardly used keeps a vector.
    """

    count: Tensor
    total: Tensor
    new: Tensor

    def __init__(self, codebook: Float[Tensor, "v e"], decay: float, *, trained: bool = False) -> None:
        """Begin with the vectors of a codebook, each the average of one latent."""
        super().__init__(len(codebook), trained=trained)
        self._decay = decay
        self.register_buffer("count", codebook.new_ones(len(codebook)))
        self.register_buffer("total", codebook.detach().clone())
        new = codebook.new_zeros(len(codebook), 1 + codebook.shape[1])  # n and s of the current step
        self.register_buffer("new", new, persistent=False)

    def _move(self, codebook: Tensor, dead: Tensor, latents: Tensor) -> None:
        codebook[dead] = latents
        self.count[dead], self.total[dead], self.new[dead] = 1.0, latents.to(self.total.dtype), 0.0

    @torch.no_grad()
    def observe(self, codes: Int[Tensor, "*b"], latents: Float[Tensor, "*b e"] | None = None) -> None:
        """Note codes of a part of a batch and their latents."""
        super().observe(codes, latents)
        assert latents is not None
        rows = latents.flatten(0, -2).to(self.new.dtype)
        self.new.index_add_(0, codes.flatten(), torch.cat([torch.ones_like(rows[:, :1]), rows], dim=1))

    @torch.no_grad()
    def end_step(self, codebook: Tensor | None, skip: Tensor) -> None:
        """Update averages and codebook with what was noted.

        Args:
            codebook: Codebook vectors; changed in place.
            skip: 1 leaves everything as it is.
        """
        assert codebook is not None
        new = distributed.total(self.new)
        count = self._decay * self.count + (1 - self._decay) * new[:, 0]
        total = self._decay * self.total + (1 - self._decay) * new[:, 1:]
        latents = count.sum()
        smoothed = (count + _SMOOTHING) / (latents + len(count) * _SMOOTHING) * latents
        vectors = (total / smoothed[:, None]).to(codebook.dtype)
        for kept, value in ((self.count, count), (self.total, total), (codebook, vectors)):
            kept.copy_(torch.where(skip > 0, kept, value))
        self.new.zero_()
