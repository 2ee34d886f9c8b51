"""A caption as the condition of a generator: a small bidirectional Transformer that is trained with it.

Its input is the caption's byte-pair tokens, or the vectors of a frozen sentence encoder. A summary token stands before
them and becomes a part of the condition vector; the others become prefix tokens. Padding is masked, and a learned
vector takes its place in the prefix, so the prefix has the same length for every caption. A caption without any token
is the unconditional case.

With ``ngrams``, every word and phrase of a caption also adds a vector of its own to the condition vector, past the
Transformer (a bag of n-grams: Joulin et al., arXiv 1607.01759). Attributes are then learned as fast as classes.

Shape letters: B batch, T tokens of a caption, P prefix tokens (T, or 0), F features of a frozen encoder, W width of
the encoder, D width of the generator, C classes.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.config import check
from aimamba.errors import ConfigError
from aimamba.models.condition import ClassCondition, Given, empty_embedding
from aimamba.models.norm import RMSNorm

Reach = Literal["both", "prefix", "adaln"]

Captions = Int[Tensor, "b t"] | Float[Tensor, "b t f"]
"""Tokens of captions, 0 where there is none; or vectors of a frozen encoder, all zero where there is none."""

MOST_TOKENS = 32
_HEAD_WIDTH = 32
_EPS = 1e-5
_LONGEST_RUN = 3
_HASH = 1_000_003
_LARGEST = {"ngrams": 1 << 20, "vocabulary": 1 << 17, "features": 1 << 13, "width": 1 << 13, "blocks": 1 << 6}


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a generator takes captions.

    Attributes:
        tokens: Most tokens of a caption (T); what is longer is cut off.
        vocabulary: Number of byte-pair tokens, with the one for padding; 0 with a frozen encoder.
        features: Width of the vectors of a frozen encoder (F); 0 where byte-pair tokens are embedded here.
        encoder: Fingerprint of the frozen encoder, see ``aimamba.networks.sentence``.
        width: Features of a token in the encoder (W), a multiple of 32.
        blocks: Layers of the encoder.
        reach: How a caption reaches the generator: as tokens before the image (``prefix``), in the vector of the
            adaptive norms (``adaln``), or as ``both``.
        ngrams: Rows of a table of one, two and three successive byte-pair tokens, which the condition vector adds up;
            0 for none. Runs of tokens that share a row are not told apart.
    """

    tokens: int = 16
    vocabulary: int = 2048
    features: int = 0
    encoder: str | None = None
    width: int = 192
    blocks: int = 2
    reach: Reach = "both"
    ngrams: int = 0

    def __post_init__(self) -> None:
        check(1 <= self.tokens <= MOST_TOKENS, f"text.tokens must be from 1 to {MOST_TOKENS}, got {self.tokens}")
        for name, most in _LARGEST.items():
            value, least = getattr(self, name), 1 if name == "width" else 0
            check(least <= value <= most, f"text.{name} must be from {least} to {most:,}, got {value:,}")
        check(
            (self.vocabulary > 1) != (self.features > 0),
            "text needs either a vocabulary of 2 tokens or more, or the features of a frozen encoder; got vocabulary "
            f"{self.vocabulary} and features {self.features}",
        )
        check(
            self.encoder is None or (self.features > 0 and re.fullmatch(r"[0-9a-f]{64}", self.encoder) is not None),
            f"text.encoder must be a fingerprint of 64 hex digits, with features, got {str(self.encoder)[:80]!r}",
        )
        check(self.width % _HEAD_WIDTH == 0, f"text.width must be a multiple of {_HEAD_WIDTH}, got {self.width}")
        choices = get_args(Reach)
        check(self.reach in choices, f"text.reach must be one of {', '.join(choices)}, got {self.reach!r}")
        check(
            not self.ngrams or (self.vocabulary > 1 and self.reach != "prefix"),
            "text.ngrams are added to the vector of the adaptive norms and need a vocabulary: leave them out with "
            "a frozen encoder, and with reach = 'prefix'",
        )

    @property
    def prefix(self) -> int:
        """Prefix tokens of an image (P)."""
        return 0 if self.reach == "adaln" else self.tokens


class TextBlock(nn.Module):
    """Attention among all tokens of a caption, and a feed-forward layer, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.hidden_norm = RMSNorm(width), RMSNorm(width)
        self.in_proj = nn.Linear(width, 3 * width, bias=False)  # q, k, v
        self.out_proj = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b t w"], seen: Bool[Tensor, "b t"]) -> Float[Tensor, "b t w"]:
        """Process all tokens; those that are not ``seen`` influence no other."""
        heads = self.in_proj(self.attention_norm(x)).unflatten(-1, (3, -1, _HEAD_WIDTH))
        q, k, v = heads.transpose(1, 3).unbind(2)  # (B, heads, T, width of a head)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        x = x + self.out_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.hidden_norm(x))))


def runs_of(tokens: Int[Tensor, "b t"], rows: int) -> Int[Tensor, "b k"]:
    """Return the rows of all runs of one, two and three successive tokens, and -1 where a run has padding.

    Args:
        tokens: Tokens of captions, 0 for padding.
        rows: Rows of the table. The row of a run is a polynomial hash of its tokens, modulo this.
    """
    found = []
    for length in range(1, min(_LONGEST_RUN, tokens.shape[1]) + 1):
        run = tokens.unfold(1, length, 1)  # (B, T - length + 1, length)
        row = torch.zeros_like(run[..., 0])
        for token in run.unbind(-1):
            row = row * _HASH + token
        found.append(torch.where((run != 0).all(dim=-1), row % rows, -1))
    return torch.cat(found, dim=1)


class TextEncoder(nn.Module):
    """Turns captions into a part of the condition vector, and prefix tokens."""

    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        self.config = config
        inner = config.width
        self.words: nn.Module = (
            nn.Linear(config.features, inner) if config.features else empty_embedding(config.vocabulary, inner)
        )
        self.places = empty_embedding(config.tokens + 1, inner)  # that of the summary is the first
        self.blocks = nn.ModuleList(TextBlock(inner) for _ in range(config.blocks))
        self.norm = RMSNorm(inner)
        self.to_vector = nn.Linear(inner, width) if config.reach != "prefix" else None
        self.to_prefix = nn.Linear(inner, width) if config.prefix else None
        self.padding = empty_embedding(config.tokens, width) if config.prefix else None
        self.ngrams = empty_embedding(config.ngrams, width) if config.ngrams else None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill matrices from N(0, 0.02^2), words from N(0, 1), places from N(0, 0.3^2), biases with 0, norms with 1.

        Words of 0.02 would be lost: the mean over a caption, which the first layers add, is as large. The summary
        begins as 0, so that it is that mean and nothing else.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(std=0.02, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
        if isinstance(self.words, nn.Embedding):
            self.words.weight.normal_(generator=generator)
        self.places.weight.normal_(std=0.3, generator=generator)[0] = 0

    def forward(self, captions: Captions) -> tuple[Float[Tensor, "b d"] | None, Float[Tensor, "b p d"] | None]:
        """Return what each caption adds to the condition vector, and its prefix tokens; None where there is none.

        Raises:
            ConfigError: The captions have another length or width.
        """
        config, frozen = self.config, bool(self.config.features)
        shape = (len(captions), config.tokens, *([config.features] if frozen else []))
        if tuple(captions.shape) != shape or captions.is_floating_point() != frozen:
            raise ConfigError(
                f"this generator takes captions as {'vectors' if frozen else 'tokens'} of shape {shape}, got "
                f"{tuple(captions.shape)} of {captions.dtype}"
            )
        seen = (captions != 0).any(dim=-1) if frozen else captions != 0
        words = self.words(captions.to(self.places.weight.dtype) if frozen else captions)
        words = F.rms_norm(words, words.shape[-1:], eps=_EPS)
        summary = words.new_zeros(len(words), 1, config.width)
        hidden = torch.cat([summary, words], dim=1) + self.places.weight
        visible = F.pad(seen, (1, 0), value=True)
        for block in self.blocks:
            hidden = block(hidden, visible)
        hidden = self.norm(hidden)
        vector = None if self.to_vector is None else self.to_vector(hidden[:, 0])
        if self.ngrams is not None and vector is not None:
            runs = runs_of(captions, config.ngrams)
            vector = vector + (self.ngrams(runs.clamp(min=0)) * (runs >= 0)[..., None]).sum(dim=1)
        if self.to_prefix is None or self.padding is None:
            return vector, None
        return vector, torch.where(seen[..., None], self.to_prefix(hidden[:, 1:]), self.padding.weight)

    def no_captions(self, batch: int) -> Captions:
        """Return captions without tokens."""
        config, places = self.config, self.places.weight
        if config.features:
            return places.new_zeros(batch, config.tokens, config.features)
        return torch.zeros(batch, config.tokens, dtype=torch.long, device=places.device)


class TextCondition(ClassCondition):
    """A caption, a class, or both."""

    def __init__(self, config: TextConfig, num_classes: int, width: int) -> None:
        super().__init__(num_classes, width)
        self.prefix_tokens = config.prefix
        self.text = TextEncoder(config, width)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill the table from N(0, 0.02^2), and the encoder as ``TextEncoder`` says."""
        super().init_weights(generator)
        self.text.init_weights(generator)

    def opening(self, given: Given, captions: Captions | None = None) -> Float[Tensor, "b p1 d"]:
        """Return what comes before the codes, see ``ClassCondition.opening``.

        Args:
            given: As there; the null class where a caption stands alone.
            captions: A caption for each image; None for none.

        Raises:
            ConfigError: The captions do not fit.
        """
        if given.ndim == 3:
            return super().opening(given)
        vectors = self(given)
        vector, prefix = self.text(self.text.no_captions(len(vectors)) if captions is None else captions)
        vectors = vectors if vector is None else vectors + vector
        return vectors[:, None] if prefix is None else torch.cat([prefix, vectors[:, None]], dim=1)
