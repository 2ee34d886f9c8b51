"""The tokenizer's opponent: a network that tells patches of reconstructions from patches of images.

PatchGAN (Isola et al., arXiv 1611.07004, section 3.2) with the hinge loss (Lim and Ye, arXiv 1705.02894), as in VQGAN
(arXiv 2012.09841) and LlamaGen (arXiv 2406.06525).

Shape letters: B batch, H W image, h w patches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.config import check

_SLOPE = 0.2  # of the leaky ReLU


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shape of a discriminator.

    Attributes:
        channels: Width of the first layer; each further one doubles it, up to eightfold.
        layers: Layers that halve the image. With 3 a logit sees 70 pixels, with 2 34, with 1 16.
    """

    channels: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        for name in ("channels", "layers"):
            check(
                getattr(self, name) >= 1, f"DiscriminatorConfig: {name} must be at least 1, got {getattr(self, name)}"
            )

    @property
    def smallest_side(self) -> int:
        """Of an image that leaves a logit."""
        return 3 << self.layers


class Discriminator(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to a grid of logits, above zero for what looks real.

    Its batch norms know the present batch alone: it never judges outside of training.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for i in range(1, len(widths)):
            stride = 2 if i < config.layers else 1
            parts += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i], track_running_stats=False),
                nn.LeakyReLU(_SLOPE),
            ]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter, drawing from ``generator`` (from torch's own when absent), as pix2pix does.

        ===========  ===================================================
        convolution  weight normal of deviation 0.02, bias 0
        batch norm   scale normal around 1 of deviation 0.02, offset 0
        ===========  ===================================================
        """
        for module in self.layers:
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.weight.normal_(float(isinstance(module, nn.BatchNorm2d)), 0.02, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b h w"]:
        """Give a logit for each patch.

        Raises:
            ConfigError: The images are too small.
        """
        side = self.config.smallest_side
        check(
            min(images.shape[-2:]) >= side,
            f"Discriminator: {self.config.layers} halving layers need images of at least {side} pixels, "
            f"got {images.shape[-2]} x {images.shape[-1]}",
        )
        return self.layers(images).squeeze(1)


class Contest(NamedTuple):
    """What a round between the tokenizer and its opponent gives.

    Attributes:
        generator_loss: Has gradients for the drawn images alone.
        discriminator_loss: Has gradients for the discriminator alone.
        real_logits: Mean over patches of images, without gradient.
        drawn_logits: Mean over patches of reconstructions, without gradient.
    """

    generator_loss: Tensor
    discriminator_loss: Tensor
    real_logits: Tensor
    fake_logits: Tensor


def contest(discriminator: Discriminator, drawn: Float[Tensor, "b 3 H W"], images: Float[Tensor, "b 3 H W"]) -> Contest:
    """Let ``discriminator`` judge reconstructions, twice, and images, once.

    Both losses stand on the same state, so one backward pass through their sum serves both players.
    """
    with _frozen(discriminator):
        generator_loss = generator_hinge(discriminator(drawn))
    real, fake = discriminator(images).float(), discriminator(drawn.detach()).float()
    return Contest(generator_loss, discriminator_hinge(real, fake), real.detach().mean(), fake.detach().mean())


def generator_hinge(fake_logits: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    """``-mean(D(drawn))``: to be taken for real."""
    return -fake_logits.float().mean()


def discriminator_hinge(real_logits: Float[Tensor, "*b"], fake_logits: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    """``(mean(max(0, 1 - D(real))) + mean(max(0, 1 + D(drawn)))) / 2``."""
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2


def adaptive_weight(
    reconstruction_loss: Float[Tensor, ""], generator_loss: Float[Tensor, ""], last_layer: Tensor
) -> Float[Tensor, ""]:
    """Balance two losses by the lengths of their gradients at the decoder's last layer (VQGAN, eq. 7).

    Returns:
        ``|grad of reconstruction_loss| / (|grad of generator_loss| + 1e-4)`` in [0, 1e4], without gradient.
    """
    lengths = [
        torch.linalg.vector_norm(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float())
        for loss in (reconstruction_loss, generator_loss)
    ]
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(0.0, 1e4).detach()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through ``module`` but not into it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
