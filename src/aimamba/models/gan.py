"""The discriminator for the tokenizer's adversarial loss: it separates patches of originals and reconstructions.

PatchGAN (Isola et al., arXiv 1611.07004, section 3.2) with the hinge loss (Lim and Ye, arXiv 1705.02894), as in VQGAN
(arXiv 2012.09841) and LlamaGen (arXiv 2406.06525).

Shape letters: B batch, H W image, h w patches.
"""

from collections.abc import Callable, Iterator
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
        channels: Width of the first layer. Each further layer doubles it, up to eight times.
        layers: Number of layers that halve the image. The receptive field of a logit is 16 pixels with 1 layer, 34
            with 2, and 70 with 3.
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
        """Side in pixels of the smallest image that yields a logit."""
        return 3 << self.layers


class Discriminator(nn.Module):
    """Map images (B, 3, H, W) in [-1, 1] to a grid of logits, above zero for patches that look real.

    The batch norms keep no running statistics, because it is only used in training.
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
        """Fill every parameter as pix2pix does, from ``generator`` (by default torch's global one).

        ===========  ===================================================
        convolution  weight from N(0, 0.02^2), bias 0
        batch norm   scale from N(1, 0.02^2), offset 0
        ===========  ===================================================
        """
        for module in self.layers:
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.weight.normal_(float(isinstance(module, nn.BatchNorm2d)), 0.02, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b h w"]:
        """Return a logit for each patch.

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


class AdversarialLosses(NamedTuple):
    """Losses of the tokenizer and of the discriminator for one batch.

    Attributes:
        generator_loss: Has gradients only for the reconstructions.
        discriminator_loss: Has gradients only for the discriminator.
        real_logits: Mean logit of originals, without gradient.
        fake_logits: Mean logit of reconstructions, without gradient.
    """

    generator_loss: Tensor
    discriminator_loss: Tensor
    real_logits: Tensor
    fake_logits: Tensor


def adversarial_losses(
    discriminator: Discriminator, fake: Float[Tensor, "b 3 H W"], real: Float[Tensor, "b 3 H W"]
) -> AdversarialLosses:
    """Compute the hinge losses of both networks.

    Both losses use the same weights of the discriminator, so one backward pass through their sum trains both.

    Args:
        discriminator: Applied twice to ``fake`` and once to ``real``.
        fake: Reconstructions.
        real: Originals.
    """
    with _frozen(discriminator):
        generator_loss = generator_hinge(discriminator(fake))
    return AdversarialLosses(generator_loss, *discriminator_losses(discriminator, fake, real))


def discriminator_losses(
    discriminator: Discriminator, fake: Float[Tensor, "b 3 H W"], real: Float[Tensor, "b 3 H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the discriminator's loss alone: ``AdversarialLosses`` without its first value."""
    real_logits, fake_logits = discriminator(real).float(), discriminator(fake.detach()).float()
    loss = discriminator_hinge(real_logits, fake_logits)
    return loss, real_logits.detach().mean(), fake_logits.detach().mean()


def generator_hinge(fake_logits: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Return ``-mean(D(fake))``: low when reconstructions look real."""
    return -fake_logits.float().mean()


def discriminator_hinge(real_logits: Float[Tensor, "*b"], fake_logits: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Return ``(mean(max(0, 1 - D(real))) + mean(max(0, 1 + D(fake)))) / 2``."""
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2


def adaptive_weight(
    reconstruction_loss: Float[Tensor, ""],
    generator_loss: Float[Tensor, ""],
    last_layer: Tensor,
    *,
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Float[Tensor, ""]:
    """Balance two losses by the norms of their gradients at the decoder's last layer (VQGAN, eq. 7).

    Args:
        reconstruction_loss: One loss.
        generator_loss: The other.
        last_layer: The weight of that layer.
        mean: Averages a gradient over processes that hold parts of a batch.

    Returns:
        ``|grad of reconstruction_loss| / (|grad of generator_loss| + 1e-4)`` in [0, 1e4], without gradient.
    """
    norms = [
        torch.linalg.vector_norm(mean(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()))
        for loss in (reconstruction_loss, generator_loss)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients flow through ``module`` but not into its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
