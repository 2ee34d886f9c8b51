"""The tokenizer: images to a grid of discrete codes and back (VQGAN, arXiv 2012.09841, as in LlamaGen, 2406.06525).

A convolutional encoder halves the image at every level but the last. Each cell of the resulting grid is replaced by
the nearest entry of an L2-normalised codebook (ViT-VQGAN, arXiv 2110.04627), and a mirrored decoder reconstructs the
image. Other quantisers stand behind the same interface, see ``aimamba.models.quantizers``.

Shape letters: B batch, C channels, H W image, h w code grid, E width of a codebook vector, V codebook size.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.checkpoints.official import vq_from_official
from aimamba.config import check
from aimamba.devices import without_autocast
from aimamba.errors import CheckpointError
from aimamba.models.pretrained import PretrainedModel
from aimamba.models.quantizers import Average, Quantized, Relaxation, make_quantizer
from aimamba.models.vq_config import VQConfig

_NORM_EPS = 1e-6
_DECIDE_CODES = ("encoder.", "to_code.", "codebook")


class VQOutput(NamedTuple):
    """Reconstructions and losses of a batch.

    Attributes:
        images: Reconstructions, (B, 3, H, W).
        codes: Code indices, (B, h, w).
        codebook_loss: Mean squared distance that pulls codebook vectors towards the encoder's output.
        commitment_loss: The same distance, pulling the encoder's output towards its codebook vector, times
            ``commitment_weight``.
        vectors: The vectors of the codes, (B, E, h, w), with a straight-through gradient.
    """

    images: Tensor
    codes: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    vectors: Tensor


class VQModel(PretrainedModel[VQConfig]):
    """Encoder, codebook and decoder; images are (B, 3, H, W) in [-1, 1]."""

    codebook: Tensor | None
    config_class = VQConfig
    since: ClassVar = {"quantizer": "learned"}
    folder_in_pipeline = "tokenizer"
    official_reader = staticmethod(vq_from_official)

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = make_quantizer(config)
        self.encoder = Encoder(config)
        self.to_code = nn.Conv2d(config.z_channels, self.quantizer.channels, 1)
        self._add_codebook()
        self.from_code = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(config)
        if self.device.type != "meta":  # see AiM.__init__
            self.init_weights()

    def _add_codebook(self) -> None:
        """Give the model the vectors of the quantiser, unless they are computed: ``codebook`` is None then."""
        kind, shape = self.quantizer.codebook, (self.config.codebook_size, self.config.codebook_dim)
        if kind == "buffer":
            self.register_buffer("codebook", torch.empty(shape))
        else:
            self.register_parameter("codebook", nn.Parameter(torch.empty(shape)) if kind == "parameter" else None)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter with random numbers from ``generator`` (by default torch's global one).

        ===========  ======================================================
        convolution  weight and bias uniform within +- 1 / sqrt(fan in)
        group norm   scale 1, offset 0
        codebook     normal, then each vector scaled to length 1
        ===========  ======================================================
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                for parameter in module.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
        if self.codebook is not None:
            self.codebook.normal_(generator=generator)
            self.codebook.copy_(F.normalize(self.codebook, dim=-1))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder's weights; what decides codes may be wider, see ``cast``."""
        return self.decoder.stem.weight.dtype

    def cast(self, dtype: torch.dtype) -> "VQModel":
        """Set the dtype of the decoder's weights.

        Encoder and codebook stay float32 or wider, so the codes of an image do not depend on a narrower dtype.
        """
        self.to(torch.promote_types(dtype, torch.float32))
        for part in (self.from_code, self.decoder):
            part.to(dtype)
        return self

    def code_fingerprint(self) -> str:
        """Return the SHA-256 of the config and of the float32 weights that decide an image's codes, as 64 hex digits.

        It is the same for equal models, wherever they are stored, and for models that differ in the decoder or its
        dtype alone.
        """
        return self.fingerprint(_DECIDE_CODES)

    def latents(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b e h w"]:
        """Encode images without rounding to codes, in the encoder's dtype."""
        factor = self.config.downsampling
        check(
            images.shape[-1] % factor == 0 and images.shape[-2] % factor == 0,
            f"VQModel: image sides must be multiples of {factor}, got {images.shape[-2]} x {images.shape[-1]}",
        )
        return self.to_code(self.encoder(images.to(self.to_code.weight.dtype)))

    def quantize(self, latents: Float[Tensor, "b e h w"], relaxation: Relaxation | None = None) -> Quantized:
        """Replace latents by the vectors of codes.

        Computed in float32 or wider, even under autocast: codes must not depend on the rounding of bfloat16.

        Args:
            latents: Output of ``latents``.
            relaxation: For the quantiser ``gumbel`` in training.

        Returns:
            Vectors (B, E, h, w) with a straight-through gradient; their codes (B, h, w); and the codebook and
            commitment losses, stacked, the latter not yet weighted.
        """
        with without_autocast(latents.device):
            wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
            codebook = None if self.codebook is None else self.codebook.to(wide.dtype)
            vectors, codes, losses = self.quantizer.quantize(wide.movedim(1, -1), codebook, relaxation)
        return Quantized(vectors.movedim(-1, 1).to(latents.dtype), codes, losses)

    def penalties(
        self, latents: Float[Tensor, "b e h w"], temperature: float, average: Average = lambda tensor: tensor
    ) -> dict[str, Tensor]:
        """Return further terms of the loss by name, see ``Quantizer.penalties``."""
        with without_autocast(latents.device):
            wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
            return self.quantizer.penalties(wide.movedim(1, -1), temperature, average)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        """Convert images to codes.

        An encoder in half precision, as ``to(torch.bfloat16)`` makes it, gives other codes than that of the checkpoint;
        ``cast`` leaves it in float32.

        Raises:
            ConfigError: A side of the images is not a multiple of the downsampling factor.
            CheckpointError: Latents or codebook contain NaN or infinity, as with damaged weights.
        """
        latents = self.latents(images)
        vectors, codes, _ = self.quantize(latents)
        if not bool(latents.isfinite().all() & vectors.isfinite().all()):
            raise CheckpointError(
                "the tokenizer's latents contain NaN or infinity: its weights are damaged, or its dtype is too narrow; "
                "give other weights, or the dtype float32"
            )
        return codes

    def vectors(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b e"]:
        """Return the codebook vectors of codes, as ``decode`` reads them."""
        return self.quantizer.vectors(codes, self.codebook, self.dtype).to(self.dtype)

    def all_vectors(self) -> Float[Tensor, "v e"]:
        """Return the codebook vectors of all codes in their order, whatever the quantiser is."""
        return self.vectors(torch.arange(self.config.codebook_size, device=self.device))

    def decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
        """Convert codes to images. Values may lie slightly outside [-1, 1]."""
        return self.decode_latents(self.vectors(codes).movedim(-1, 1))

    def decode_latents(self, latents: Float[Tensor, "b e h w"]) -> Float[Tensor, "b 3 H W"]:
        """Convert codebook vectors to images."""
        return self.decoder(self.from_code(latents.contiguous().to(self.dtype)))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> VQOutput:
        """Encode, quantise and decode, and return both quantiser losses too."""
        return self.reconstruct(self.latents(images))

    def reconstruct(self, latents: Float[Tensor, "b e h w"], relaxation: Relaxation | None = None) -> VQOutput:
        """Quantise and decode the output of ``latents``; see ``quantize``."""
        vectors, codes, (codebook_loss, distance) = self.quantize(latents, relaxation)
        images, commitment_loss = self.decode_latents(vectors), self.config.commitment_weight * distance
        return VQOutput(images, codes, codebook_loss, commitment_loss, vectors)


class Encoder(nn.Module):
    """Map images to a grid of latents."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        last = len(widths) - 1
        self.patch_size = config.patch_size
        self.stem = nn.Conv2d(3 * config.patch_size**2, config.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                [config.channels, *widths][i],
                widths[i],
                blocks=config.num_res_blocks,
                groups=config.norm_groups,
                attention=config.attention and i == last,
                resample=Downsample(widths[i]) if i < last else None,
            )
            for i in range(len(widths))
        )
        self.middle = _middle(widths[-1], config)
        self.norm = SwishNorm(config.norm_groups, widths[-1], eps=_NORM_EPS)
        self.head = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, z_channels, h, w)."""
        hidden = self.stem(images if self.patch_size == 1 else F.pixel_unshuffle(images, self.patch_size))
        for level in self.levels:
            hidden = level(hidden)
        return self.head(self.norm(self.middle(hidden)))


class Decoder(nn.Module):
    """Map a grid of latents to images, with the encoder's levels in reverse order."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.widths[1] * mult for mult in reversed(config.channel_mult)]
        last = len(widths) - 1
        self.stem = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], config)
        self.levels = nn.ModuleList(
            Level(
                [widths[0], *widths][i],
                widths[i],
                blocks=config.num_res_blocks + 1,
                groups=config.norm_groups,
                attention=config.attention and i == 0,
                resample=Upsample(widths[i]) if i < last else None,
            )
            for i in range(len(widths))
        )
        self.norm = SwishNorm(config.norm_groups, widths[-1], eps=_NORM_EPS)
        self.patch_size = config.patch_size
        self.head = nn.Conv2d(widths[-1], 3 * config.patch_size**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Map features (B, z_channels, h, w) to images (B, 3, H, W)."""
        hidden = self.middle(self.stem(latents))
        for level in self.levels:
            hidden = level(hidden)
        images = self.head(self.norm(hidden))
        return images if self.patch_size == 1 else F.pixel_shuffle(images, self.patch_size)  # on CUDA it always copies


def _middle(width: int, config: VQConfig) -> nn.Sequential:
    """Return a residual block, attention (optional) and a residual block, for the coarsest grid."""
    first, second = (ResidualBlock(width, width, config.norm_groups) for _ in range(2))
    between: Sequence[nn.Module] = [SpatialAttention(width, config.norm_groups)] if config.attention else []
    return nn.Sequential(first, *between, second)


class Level(nn.Module):
    """Residual blocks at one resolution, each optionally followed by attention, then a change of resolution."""

    def __init__(
        self, inputs: int, outputs: int, *, blocks: int, groups: int, attention: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.residual = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(blocks)
        )
        self.attention = nn.ModuleList(SpatialAttention(outputs, groups) for _ in range(blocks if attention else 0))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks."""
        for i, block in enumerate(self.residual):
            x = block(x)
            if self.attention:
                x = self.attention[i](x)
        return x if self.resample is None else self.resample(x)


class SwishNorm(nn.GroupNorm):
    """A group norm, then swish."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        return F.silu(super().forward(x))


class ResidualBlock(nn.Module):
    """Norm, swish and 3 x 3 convolution, twice, added to a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = SwishNorm(groups, inputs, eps=_NORM_EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = SwishNorm(groups, outputs, eps=_NORM_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        hidden = self.conv1(self.norm1(x))
        hidden = self.conv2(self.norm2(hidden))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nn.Module):
    """Single-head self-attention over the cells of the grid."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=_NORM_EPS)
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Let every cell attend to all cells."""
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, 1, h w, C)
        return x + self.out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Conv2d):
    """Halve the grid, padding only the right and the bottom, as in VQGAN."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h / 2, w / 2)."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Double the grid by repeating each cell, then convolve."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2 h, 2 w)."""
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
