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

MixerKind = Literal["mamba2", "attention"]
PositionKind = Literal["learned", "rope", "none"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "mixer": get_args(MixerKind),
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
        mixer: ``mamba2``, or ``attention`` for the Transformer baseline, whose blocks alternate between attention
            and feed-forward.
        adaln: How the condition reaches the blocks, see ``aimamba.models.adaln``.
        adaln_groups: Number of shared projections when ``adaln`` is ``group``.
        positions: ``learned`` adds a position embedding to each code; ``rope`` rotates queries and keys of the
            attention mixer.
        state_size: State size of a Mamba-2 head, for each of its features.
        head_width: Features of a head, in either mixer.
        expand: Inner width of Mamba-2 as a multiple of ``width``.
        conv_width: Taps of Mamba-2's causal convolution.
        chunk_size: Tokens that the parallel form of SSD processes at once. It changes speed, not results.
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
    adaln: AdaLNKind = "block"
    adaln_groups: int = 4
    positions: PositionKind = "learned"
    state_size: int = 128
    head_width: int = 64
    expand: int = 2
    conv_width: int = 4
    chunk_size: int = 64
    feed_forward: float = 8 / 3
    decode_position_shift: int = 0
    tokenizer: str | None = None
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        check_generator(self)
        for name, choices in _CHOICES.items():
            chosen = getattr(self, name)
            check(chosen in choices, f"AiMConfig: {name} must be one of {', '.join(choices)}, got {chosen!r}")
        inner = self.width * (self.expand if self.mixer == "mamba2" else 1)
        check(
            inner % self.head_width == 0,
            f"AiMConfig: head_width {self.head_width} must divide the mixer's inner width {inner}",
        )
        check(
            self.positions != "rope" or (self.mixer == "attention" and self.head_width % 4 == 0),
            "AiMConfig: positions 'rope' needs mixer 'attention' and a head_width divisible by 4",
        )
        check(
            self.mixer == "mamba2" or self.num_blocks % 2 == 0,
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
