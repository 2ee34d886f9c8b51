"""reAR: a generator that keeps to what its tokenizer can decode (arXiv 2510.04450). It changes training alone.

Some of the codes that the model reads are random ones, fewer and fewer of them. Beside the next code, hidden states
learn the tokenizer's vectors: early ones that of the code just read, late ones that of the code to come.

Shape letters: B batch, L codes of an image, D width, V codes, E width of a codebook vector.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba import distributed
from aimamba.config import check
from aimamba.models import AiMConfig, VQModel

HiddenStates = dict[int, Tensor | None]
"""Hidden states (B, L, D) by the number of blocks that they are the output of; None until they are computed."""

_WIDER = 2  # times the width of the model: the hidden layer of a head


class CodeNoise(NamedTuple):
    """How many of the codes that a model reads are random ones.

    Attributes:
        start: Their share in the first step.
        end: From step ``until`` on.
        until: In between it falls linearly; 0 is no change.
        varied: Whether each image has a share of its own, uniform between 0 and that of the step.
    """

    start: float
    end: float = 0.0
    until: int = 0
    varied: bool = False

    def check(self) -> None:
        """Raise a ``ConfigError`` if a number is out of range."""
        check(self.until >= 0, f"task.code_noise_until must not be negative, got {self.until}")
        changing = self.until > 0 or self.varied
        most = "1]" if changing else "1)"
        check(
            0 <= self.start < 1 or (changing and self.start == 1),
            f"task.code_noise must lie in [0, {most}, got {self.start}",
        )
        check(
            0 <= self.end <= self.start,
            f"task.code_noise_end must lie between 0 and task.code_noise = {self.start}, got {self.end}",
        )
        check(
            self.end == 0 or self.until > 0,
            f"task.code_noise_end = {self.end} needs task.code_noise_until, the step from which on it holds",
        )

    def share(self, step: int | Tensor) -> float | Tensor:
        """Return the share in a step, counted from 0: a scalar tensor if the step is one."""
        if self.until == 0:
            return self.start
        done = step / self.until
        done = done.clamp(max=1.0) if isinstance(done, Tensor) else min(1.0, done)
        return self.start + (self.end - self.start) * done

    def replace(
        self, codes: Int[Tensor, "b l1"], vocab_size: int, rng: torch.Generator, step: int | Tensor
    ) -> Int[Tensor, "b l1"]:
        """Return codes of which some are random ones below ``vocab_size``."""
        if self.start == 0:
            return codes
        share, shape = self.share(step), tuple(codes.shape)
        if self.varied:
            share = share * distributed.uniform((len(codes), 1), rng, codes.device)
        replaced = distributed.uniform(shape, rng, codes.device) < share
        others = (distributed.uniform(shape, rng, codes.device) * vocab_size).long()
        return torch.where(replaced, others, codes)


class VectorHeads(nn.Module):
    """Two heads that tell codebook vectors from hidden states. No saved model has them.

    Each normalises the hidden state, whose scale grows with depth, and has one hidden layer with SiLU.
    """

    vectors: Tensor

    def __init__(
        self, vectors: Float[Tensor, "v e"], *, width: int, blocks: int, recover_after: int = 1, predict_after: int = 0
    ) -> None:
        """Make heads without initial weights.

        Args:
            vectors: The codebook.
            width: Width of the model.
            blocks: Number of its blocks.
            recover_after: Number of blocks after which the vector of the code just read is recovered.
            predict_after: Number after which that of the next code is predicted; 0 is the block at three quarters.

        Raises:
            ConfigError: The model has fewer blocks.
        """
        super().__init__()
        self.recover_after, self.predict_after = recover_after, predict_after or min(blocks, 3 * blocks // 4 + 1)
        for name in ("recover_after", "predict_after"):
            check(
                getattr(self, name) <= blocks,
                f"task.rear_{name} must be at most {blocks}, the number of the model's blocks, got "
                f"{getattr(self, name)}",
            )
        with torch.device("meta"):  # draws no random numbers
            self.recover, self.predict = (_head(width, vectors.shape[1]) for _ in range(2))
        self.to_empty(device=vectors.device)
        self.register_buffer("vectors", vectors, persistent=False)

    @classmethod
    def of(cls, model: AiMConfig, tokenizer: VQModel, *, recover_after: int, predict_after: int) -> "VectorHeads":
        """Make heads for a generator and the tokenizer of its codes.

        Raises:
            ConfigError: The generator has fewer blocks, or the tokenizer other codes.
        """
        size = tokenizer.config.codebook_size
        check(
            size == model.vocab_size,
            f"task.rear_weight needs the codebook of the tokenizer, which has {size} codes, and the generator "
            f"{model.vocab_size}; give the tokenizer of its codes, or set it to 0",
        )
        vectors = tokenizer.all_vectors().detach().float()
        after = {"recover_after": recover_after, "predict_after": predict_after}
        return cls(vectors, width=model.width, blocks=model.num_blocks, **after)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill weights with normal numbers that keep the scale of what goes in; biases are 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5, generator=generator)
                module.bias.zero_()

    def empty_states(self) -> HiddenStates:
        """Return what the forward pass of the model is to fill in."""
        return dict.fromkeys((self.recover_after, self.predict_after))

    def losses(self, states: HiddenStates, codes: Int[Tensor, "b l"]) -> dict[str, Tensor]:
        """Return two mean cosine distances to codebook vectors, from 0 to 2.

        Args:
            states: Hidden states (B, L, D), of which number t has read the codes before t.
            codes: The codes of the images, without noise.

        Returns:
            ``vector_recovery`` to the vector of the code just read, also where noise had replaced it, and
            ``vector_prediction`` to that of the next code.
        """
        early, late = states[self.recover_after], states[self.predict_after]
        assert early is not None
        assert late is not None
        vectors = F.embedding(codes, self.vectors)
        return {
            "vector_recovery": _distance(self.recover(early[:, 1:]), vectors[:, :-1]),
            "vector_prediction": _distance(self.predict(late), vectors),
        }


def _head(width: int, out: int) -> nn.Sequential:
    norm = nn.RMSNorm(width, elementwise_affine=False)
    return nn.Sequential(norm, nn.Linear(width, _WIDER * width), nn.SiLU(), nn.Linear(_WIDER * width, out))


def _distance(found: Float[Tensor, "*b e"], wanted: Float[Tensor, "*b e"]) -> Float[Tensor, ""]:
    return 1 - F.cosine_similarity(found.to(wanted.dtype), wanted, dim=-1).mean()
