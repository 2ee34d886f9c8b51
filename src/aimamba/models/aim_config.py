"""The shape of a generator, and the paper's four scales.

Shape letters: L tokens of an image, D width, V vocabulary, N blocks.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from aimamba.config import check
from aimamba.models.adaln import AdaLNKind
from aimamba.models.bounds import check_generator
from aimamba.models.text import TextConfig

MixerKind = Literal["mamba2", "mamba3", "gated-deltanet", "attention"]
BlockMixer = MixerKind | Literal["feed-forward"]
PositionKind = Literal["learned", "rope", "none"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "mixer": get_args(MixerKind),
    "hybrid_mixer": get_args(MixerKind),
    "adaln": get_args(AdaLNKind),
    "positions": get_args(PositionKind),
}


@dataclass(frozen=True, kw_only=True)
class AiMConfig:
    """Shape of a generator.

    Attributes:
        width: Features of a token (D).
        num_blocks: Residual blocks (N).
        vocab_size: Number of codes of the tokenizer (V).
        num_tokens: Codes of an image (L), e.g. 256 for a grid of 16 x 16.
        num_classes: Number of class labels. The class table has one more row, for the null class.
        mixer: ``mamba2``; ``mamba3`` (arXiv 2603.15569); ``gated-deltanet`` (arXiv 2412.06464); or ``attention`` for
            the Transformer baseline, whose blocks alternate between attention and feed-forward.
        hybrid_every: Makes every so many-th block one of another mixer, ``hybrid_mixer``; 0 is no such block.
        hybrid_mixer: The mixer of those blocks. Blocks of ``attention`` are attention alone, without feed-forward.
        adaln: How the condition reaches the blocks, see ``aimamba.models.adaln``.
        adaln_groups: Number of shared projections when ``adaln`` is ``group``.
        positions: ``learned`` adds a position embedding to each code; ``rope`` rotates queries and keys of
            attention.
        state_size: State size of a head, for each of its features: in ``gated-deltanet`` the features of a key.
        head_width: Features of a head, in every mixer.
        expand: Inner width of the mixers except ``attention`` as a multiple of ``width``.
        conv_width: Taps of the causal convolution, which ``mamba3`` does not have.
        chunk_size: Tokens that the parallel forms process at once. It changes speed, not results.
        feed_forward: Hidden width of the feed-forward blocks as a multiple of ``width``.
        decode_position_shift: Added to the place of every code when decoding step by step. Official weights were
            trained with 0, but the official code samples with 1; our own models use 0.
        tokenizer: ``code_fingerprint`` of the tokenizer whose codes it was trained on; None where that is not known, as
            of official weights.
        text: How captions are taken; None for classes alone.
    """

    width: int = 768
    num_blocks: int = 24
    vocab_size: int = 16384
    num_tokens: int = 256
    num_classes: int = 1000
    mixer: MixerKind = "mamba2"
    hybrid_every: int = 0
    hybrid_mixer: MixerKind = "attention"
    adaln: AdaLNKind = "block"
    adaln_groups: int = 4
    positions: PositionKind = "learned"
    state_size: int = 128
    head_width: int = 64
    expand: int | float = 2
    conv_width: int = 4
    chunk_size: int = 64
    feed_forward: float = 8 / 3
    decode_position_shift: int = 0
    tokenizer: str | None = None
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            chosen = getattr(self, name)
            check(chosen in choices, f"AiMConfig: {name} must be one of {', '.join(choices)}, got {chosen!r}")
        check_generator(self)
        self._check_hybrid()
        kinds = set(self.block_mixers)
        for inner in [self.inner] * bool(kinds - {"attention", "feed-forward"}) + [self.width] * ("attention" in kinds):
            check(
                inner % self.head_width == 0,
                f"AiMConfig: head_width {self.head_width} must divide the mixer's inner width {inner}",
            )
        check(
            "mamba3" not in kinds or self.state_size >= 4,
            f"AiMConfig: mixer 'mamba3' needs a state_size of at least 4, a pair to turn, got {self.state_size}",
        )
        check(
            self.positions != "rope" or ("attention" in kinds and self.head_width % 4 == 0),
            "AiMConfig: positions 'rope' needs mixer 'attention' and a head_width divisible by 4",
        )
        check(
            self.mixer != "attention" or self.num_blocks % 2 == 0,
            f"AiMConfig: mixer 'attention' needs an even num_blocks (two per Transformer layer), got {self.num_blocks}",
        )
        check(
            self.decode_position_shift in (0, 1),
            f"AiMConfig: decode_position_shift must be 0 or 1, got {self.decode_position_shift}",
        )
        check(
            self.tokenizer is None or re.fullmatch(r"[0-9a-f]{64}", self.tokenizer) is not None,
            f"AiMConfig: tokenizer must be a fingerprint of 64 hex digits, got {str(self.tokenizer)[:80]!r}",
        )
        check(
            self.text is None or self.positions != "rope",
            "AiMConfig: positions 'rope' counts from the class vector, and captions come before it; choose 'learned'",
        )

    def _check_hybrid(self) -> None:
        every, other = self.hybrid_every, self.hybrid_mixer
        check(
            every == 0 or 2 <= every <= self.num_blocks,
            f"AiMConfig: hybrid_every must be 0, or from 2 to num_blocks ({self.num_blocks}), got {every}",
        )
        check(
            every > 0 or other == "attention",
            f"AiMConfig: hybrid_mixer {other!r} has no block; set hybrid_every to the distance of its blocks",
        )
        check(
            every == 0 or other != self.mixer != "attention",
            "AiMConfig: hybrid_every needs a hybrid_mixer that differs from mixer, and another mixer than 'attention', "
            f"which takes turns with feed-forward; got mixer {self.mixer!r} and hybrid_mixer {other!r}",
        )

    @property
    def inner(self) -> int:
        """Inner width of the mixers except attention (E)."""
        return round(self.expand * self.width)

    @property
    def block_mixers(self) -> tuple[BlockMixer, ...]:
        """The mixer of each block."""
        if self.mixer == "attention":
            return ("attention", "feed-forward") * (self.num_blocks // 2)
        every = self.hybrid_every or self.num_blocks + 1
        return tuple(self.mixer if number % every else self.hybrid_mixer for number in range(1, self.num_blocks + 1))

    @property
    def prefix_tokens(self) -> int:
        """Vectors before the condition vector (P), see ``aimamba.models.condition``."""
        return 0 if self.text is None else self.text.prefix

    @property
    def steps(self) -> int:
        """Decoding steps of an image: one for every prefix token, and one for every code (P + L)."""
        return self.prefix_tokens + self.num_tokens


_AIM = AiMConfig()
AIM_PRESETS: dict[str, AiMConfig] = {  #                                                   parameters     paper FID
    "aim-b": replace(_AIM, width=768, num_blocks=24, adaln="block"),  #                     147,622,080     3.52
    "aim-l": replace(_AIM, width=1024, num_blocks=48, adaln="group", adaln_groups=4),  #    349,760,000     2.83
    "aim-xl": replace(_AIM, width=1536, num_blocks=48, adaln="group", adaln_groups=4),  #   763,291,392     2.56
    "aim-1b": replace(_AIM, width=2048, num_blocks=48, adaln="group", adaln_groups=4),  # 1,335,944,192     2.21
}
"""The paper's four scales (its Table 1) for ImageNet at 256 x 256 pixels."""
