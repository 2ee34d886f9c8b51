"""The shape of a tokenizer and its presets."""

from dataclasses import dataclass

from aimamba.config import check
from aimamba.models.bounds import check_tokenizer
from aimamba.models.quantizers import QuantizerKind


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Shape of a tokenizer.

    Attributes:
        channels: Width of the first level.
        channel_mult: Width of each level as a multiple of ``channels``. Every level but the last halves the image,
            so the downsampling factor is ``patch_size * 2 ** (len(channel_mult) - 1)``.
        patch_size: Side of the squares of pixels that the first convolution reads as the channels of one cell, and
            that the last convolution returns. The published model uses 1 and convolves at full resolution, where a
            small model would spend most of its time.
        num_res_blocks: Residual blocks of an encoder level; a decoder level has one more.
        z_channels: Channels between the convolutions and the projections to and from codebook vectors.
        codebook_size: Number of codes (V).
        codebook_dim: Width of a codebook vector (E).
        attention: Self-attention at the coarsest level, as in the published model.
        norm_groups: Groups of every group norm; they must divide every width.
        commitment_weight: Weight of the commitment loss relative to the codebook loss.
        quantizer: What turns latents into codes: ``learned``, the nearest vector of an L2-normalised codebook;
            ``ema``, the nearest of vectors that are moving averages; ``fsq``, each channel rounded to ``levels``;
            ``lfq``, the sign of each channel, so ``codebook_size`` is ``2 ** codebook_dim``; or ``gumbel``, the code
            with the largest of as many logits as there are codes.
        levels: Of ``fsq``: levels of each of the ``codebook_dim`` channels; their product is ``codebook_size``.
        decoder_channels: Width of the decoder's last level, in place of ``channels``; its other levels are as many
            times wider as those of the encoder.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    patch_size: int = 1
    num_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    attention: bool = True
    norm_groups: int = 32
    commitment_weight: float = 0.25
    quantizer: QuantizerKind = "learned"
    levels: tuple[int, ...] | None = None
    decoder_channels: int | None = None

    def __post_init__(self) -> None:
        check_tokenizer(self)
        for width in (channels * mult for channels in self.widths for mult in (1, *self.channel_mult)):
            check(
                width % self.norm_groups == 0,
                f"VQConfig: norm_groups {self.norm_groups} must divide channels and every level's width, got {width}",
            )

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of the finest level of the encoder and of the decoder."""
        return self.channels, self.channels if self.decoder_channels is None else self.decoder_channels

    @property
    def downsampling(self) -> int:
        """Pixels per cell of the code grid, along one side."""
        return self.patch_size << (len(self.channel_mult) - 1)


VQ_PRESETS: dict[str, VQConfig] = {
    "vq-f16": VQConfig(),  # 71,883,403 parameters; LlamaGen's rFID on ImageNet 256: 2.19
}
