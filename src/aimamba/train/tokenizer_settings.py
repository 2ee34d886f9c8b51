"""Settings of the training of a tokenizer."""

import math
from dataclasses import dataclass

from aimamba.config import check
from aimamba.models.gan import DiscriminatorConfig
from aimamba.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TokenizerTaskConfig:
    """Weights and settings of the losses.

    LlamaGen uses ``perceptual_weight = 1`` with ``perceptual = "lpips"``, and ``adversarial_weight = 0.5``. VQGAN's
    adversarial weight is 0.8, with ``adversarial_adaptive = true``.

    Attributes:
        l1_weight: Weight of the mean absolute error of pixels in [-1, 1].
        l2_weight: Weight of the mean squared error of pixels in [-1, 1].
        detail_weight: How much more errors count where an image has small parts and edges: a pixel counts 1 +
            ``detail_weight`` times its distance from the mean of the 9 x 9 pixels around it, in the channel where that
            is largest. In both pixel losses; 0 counts all pixels alike. Without it, what has a few pixels, such as a
            mouth in a small image, is drawn last.
        image_gradient_weight: Weight of the mean absolute error of the differences between pixels and their neighbours
            to the right and below. It keeps plain ground plain: ripples of 1 % count little in the other losses, some
            the perceptual network does not see, and people and other networks do.
        codebook_weight: Weight of the sum of the codebook and commitment losses.
        causal_weight: Weight of causal regularisation (CRT, arXiv 2412.16326): a small network, which no saved model
            has, predicts the vector of each code from those before it in raster order, and its mean squared error
            trains encoder and codebook too. Codes become easier to predict; more than a little makes reconstructions
            worse, so begin with 0.1. Not with an adversarial loss, nor with ``decoder_only``.
        perceptual_weight: Weight of the perceptual loss, a distance between features of a trained network; 0 is none.
        perceptual_start: First step, counted from 0, with a perceptual loss. Steps without it are several times faster.
        perceptual: The network: ``lite0``; ``lpips``, whose weights are a package of their own; or the file or folder
            with the weights of VGG16 and LPIPS.
        perceptual_side: ``lite0`` enlarges smaller images to at least this many pixels; its time grows with the square.
        adversarial_weight: Weight of the adversarial loss; 0 is no discriminator.
        adversarial_start: First step, counted from 0, with an adversarial loss.
        discriminator_start: First step in which the discriminator learns; by default ``adversarial_start``. It starts
            from random weights, also with ``init``, so with a trained tokenizer it should learn for some hundred steps
            before its verdict counts.
        adversarial_adaptive: Whether to scale the adversarial loss in every step so that its gradient at the last layer
            is as large as that of the pixel and perceptual losses.
        discriminator_lr: Highest learning rate of the discriminator; it follows the same schedule as the model's.
        discriminator_channels: Width of the discriminator's first layer.
        discriminator_layers: Number of the discriminator's layers that halve the image.
        decoder_only: Whether to train the decoder only. The codes of images stay the same, so generators trained on
            them stay valid. Needs ``init`` in the recipe.
        revive_codes: Whether to move codes that are not used to latents that are badly served. Without it, those of a
            codebook that was trained before stay as they are. Only of the quantisers ``learned`` and ``ema``.
        codebook_decay: Of the quantiser ``ema``: share of its moving averages that stays in each step.
        entropy_weight: Of ``lfq``: weight of the entropy of a latent's code, less ``mean_entropy_weight`` times that of
            the mean distribution over codes, both in nats. The first makes codes sure, the second makes all be used.
        mean_entropy_weight: See ``entropy_weight``.
        entropy_temperature: Temperature of the distributions of which these are entropies.
        kl_weight: Of ``gumbel``: weight of the divergence, in nats, of a latent's distribution over codes from the
            uniform one. DALL-E's 6.6 is 0.034 here, beside a loss per pixel value.
        kl_until: Step from which on it has that weight; before, it rises from 0 along half a cosine.
        gumbel_temperature: Of ``gumbel``: temperature of the first step.
        gumbel_last_temperature: Temperature from step ``gumbel_until`` on; in between it falls along half a cosine.
        gumbel_until: See ``gumbel_last_temperature``.
    """

    l1_weight: float = 0.0
    l2_weight: float = 1.0
    detail_weight: float = 0.0
    image_gradient_weight: float = 0.0
    codebook_weight: float = 1.0
    causal_weight: float = 0.0
    perceptual_weight: float = 0.0
    perceptual_start: int = 0
    perceptual: str = "lite0"
    perceptual_side: int = 128
    adversarial_weight: float = 0.0
    adversarial_start: int = 20000
    discriminator_start: int | None = None
    adversarial_adaptive: bool = False
    discriminator_lr: float = 1e-4
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    decoder_only: bool = False
    revive_codes: bool = True
    codebook_decay: float = 0.99
    entropy_weight: float = 0.1
    mean_entropy_weight: float = 1.0
    entropy_temperature: float = 1.0
    kl_weight: float = 5e-4
    kl_until: int = 0
    gumbel_temperature: float = 1.0
    gumbel_last_temperature: float = 0.0625
    gumbel_until: int = 20000

    def __post_init__(self) -> None:
        weights = ("l1_weight", "l2_weight", "codebook_weight", "perceptual_weight", "adversarial_weight")
        finite = (
            "detail_weight",
            "image_gradient_weight",
            "causal_weight",
            "entropy_weight",
            "mean_entropy_weight",
            "kl_weight",
        )
        for name in (*weights, *finite, "perceptual_start", "adversarial_start", "kl_until", "gumbel_until"):
            check(getattr(self, name) >= 0, f"task.{name} must not be negative, got {getattr(self, name)}")
        for name in finite:
            check(math.isfinite(getattr(self, name)), f"task.{name} must be finite, got {getattr(self, name)}")
        check(
            not (self.causal_weight and self.adversarial_weight),
            "task.causal_weight does not go with task.adversarial_weight; train with the first alone, and start a run "
            "with the second and task.decoder_only from that tokenizer (--init)",
        )
        check(
            not (self.causal_weight and self.decoder_only),
            "task.causal_weight changes the codes, which task.decoder_only keeps; leave one of them out",
        )
        for name in ("entropy_temperature", "gumbel_temperature", "gumbel_last_temperature"):
            check(0 < getattr(self, name) < math.inf, f"task.{name} must be positive, got {getattr(self, name)}")
        check(
            self.gumbel_last_temperature <= self.gumbel_temperature,
            f"task.gumbel_last_temperature must be at most task.gumbel_temperature = {self.gumbel_temperature:g}, got "
            f"{self.gumbel_last_temperature:g}",
        )
        check(0 <= self.codebook_decay < 1, f"task.codebook_decay must lie in [0, 1), got {self.codebook_decay}")
        for name in ("perceptual_side", "discriminator_channels", "discriminator_layers"):
            check(getattr(self, name) >= 1, f"task.{name} must be at least 1, got {getattr(self, name)}")
        check(
            0 < self.discriminator_lr < math.inf, f"task.discriminator_lr must be positive, got {self.discriminator_lr}"
        )
        check(
            0 <= self.first_of_discriminator <= self.adversarial_start,
            f"task.discriminator_start must be 0 to task.adversarial_start = {self.adversarial_start}, "
            f"got {self.discriminator_start}",
        )

    def check_recipe(self, recipe: Recipe, downsampling: int) -> None:
        """Check what does not depend on the images, before they are opened.

        Args:
            recipe: The recipe that this is the section ``task`` of.
            downsampling: That of the tokenizer.

        Raises:
            ConfigError: Settings do not go together.
        """
        check(
            not recipe.fit.compile,
            "fit.compile is for generators only: a tokenizer spends its time in convolutions, which it does not speed "
            "up; leave it out",
        )
        check(
            recipe.init is not None or not self.decoder_only,
            "task.decoder_only keeps the codes of a trained tokenizer, so it needs one: name it in 'init' or with "
            "--init",
        )
        recipe.data.check_size(downsampling)
        check(
            not recipe.data.moved,
            "data.moved is for generators; a tokenizer sees other crops with data.crop = 'random'",
        )
        if self.adversarial_weight:
            self.discriminator(recipe.data.size)

    def discriminator(self, size: int) -> DiscriminatorConfig:
        """Return the shape of the discriminator of images of ``size`` pixels.

        Raises:
            ConfigError: They are too small for it.
        """
        shape = DiscriminatorConfig(channels=self.discriminator_channels, layers=self.discriminator_layers)
        check(
            size >= shape.smallest_side,
            f"task.discriminator_layers = {shape.layers} needs images of at least {shape.smallest_side} pixels, got "
            f"{size}; set fewer layers",
        )
        return shape

    @property
    def first_of_discriminator(self) -> int:
        """The first step in which the discriminator learns."""
        return self.adversarial_start if self.discriminator_start is None else self.discriminator_start

    def temperature(self, step: int) -> float:
        """Return the temperature of ``gumbel`` in a step, counted from 0."""
        first, last = self.gumbel_temperature, self.gumbel_last_temperature
        return first + (last - first) * _risen(step, self.gumbel_until)

    def weights(self, step: int) -> dict[str, float]:
        """Return the weights of what ``VQModel.penalties`` returns, by name."""
        return {
            "code_entropy": self.entropy_weight,
            "mean_entropy": -self.entropy_weight * self.mean_entropy_weight,
            "kl": self.kl_weight * _risen(step, self.kl_until),
        }


def _risen(step: int, until: int) -> float:
    """Return a share that rises from 0 to 1 along half a cosine, and is 1 from step ``until`` on."""
    return (1 - math.cos(math.pi * step / until)) / 2 if step < until else 1.0
