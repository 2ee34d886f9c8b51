"""Stage 1: learn to write an image as codes and to draw it again."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.config import check
from aimamba.data.images import ImageSet
from aimamba.data.loader import Batch, batches
from aimamba.data.sheets import sheet, to_float, to_images
from aimamba.models import VQModel
from aimamba.models.gan import Discriminator, DiscriminatorConfig, adaptive_weight, contest
from aimamba.networks.perceptual import perceptual_loss
from aimamba.train.codebook import CodebookUse
from aimamba.train.task import Adversary

_IMAGES_AT_ONCE = 32
_SHEET_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class TokenizerTaskConfig:
    """What the tokenizer is asked to do well.

    The recipe of LlamaGen is ``perceptual_weight = 1``, ``perceptual`` the weights of VGG16 and LPIPS, and
    ``adversarial_weight = 0.5``; VQGAN's adversarial weight is 0.8 and adaptive.

    Attributes:
        l1_weight: Weight of the mean absolute error of pixels in [-1, 1].
        l2_weight: Weight of their mean squared error.
        codebook_weight: Weight of the codebook and commitment losses together.
        perceptual_weight: Weight of the distance that a trained network sees; 0 needs no network.
        perceptual_start: Step, counted from 0, from which on there is one; pixels alone take a fraction of the time.
        perceptual: That network: ``lite0``, or the file or folder of VGG16's and LPIPS's weights.
        perceptual_side: Smaller images are magnified to at least this for ``lite0``; its time grows with the square.
        adversarial_weight: Weight of the adversarial loss; 0 needs no discriminator.
        adversarial_start: Step, counted from 0, from which on there is one; before it neither runs nor learns.
        adversarial_adaptive: Whether the weight is multiplied in every step by the quotient of the gradients of pixel
            and perceptual losses and of the adversarial one, at the last layer.
        discriminator_lr: Its highest learning rate; the model's schedule goes for both.
        discriminator_channels: Width of its first layer.
        discriminator_layers: Its layers that halve the image.
        decoder_only: Whether encoder and codebook stay as they are, so that images keep their codes and generators
            trained on them stay valid: to draw better from the codes there are. Asks for ``init`` in the recipe.
    """

    l1_weight: float = 0.0
    l2_weight: float = 1.0
    codebook_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_start: int = 0
    perceptual: str = "lite0"
    perceptual_side: int = 128
    adversarial_weight: float = 0.0
    adversarial_start: int = 20000
    adversarial_adaptive: bool = False
    discriminator_lr: float = 1e-4
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    decoder_only: bool = False

    def __post_init__(self) -> None:
        weights = ("l1_weight", "l2_weight", "codebook_weight", "perceptual_weight", "adversarial_weight")
        for name in (*weights, "perceptual_start", "adversarial_start"):
            check(getattr(self, name) >= 0, f"task.{name} must not be negative, got {getattr(self, name)}")
        for name in ("perceptual_side", "discriminator_channels", "discriminator_layers"):
            check(getattr(self, name) >= 1, f"task.{name} must be at least 1, got {getattr(self, name)}")
        check(
            0 < self.discriminator_lr < math.inf, f"task.discriminator_lr must be positive, got {self.discriminator_lr}"
        )


class TokenizerTask:
    """Reconstruction through the codebook; where asked, judged by a trained network and by an opponent in training."""

    def __init__(
        self,
        model: VQModel,
        train: ImageSet,
        held_out: ImageSet,
        config: TokenizerTaskConfig,
        *,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        """Prepare the stage.

        Raises:
            ConfigError: The images are too small for the discriminator, or the perceptual network is not installed.
            CheckpointError: The files of the perceptual network cannot be used.
        """
        self.model = model
        self.train = train
        self.held_out = held_out
        self.config = config
        self.seed = seed
        self.workers = workers
        self.use = CodebookUse(model.config.codebook_size)
        self.perceptual = (
            perceptual_loss(config.perceptual, smallest_side=config.perceptual_side)
            if config.perceptual_weight
            else None
        )
        self.discriminator = _discriminator(config, train.size, seed) if config.adversarial_weight else None
        if config.decoder_only:
            model.requires_grad_(False)
            for part in (model.from_code, model.decoder):
                part.requires_grad_(True)

    def companions(self) -> dict[str, nn.Module]:
        """Name what else training changes: the running use of the codes."""
        return {"codebook_use": self.use}

    def basis(self) -> dict[str, str]:
        """Name what the images depend on beside the recipe: nothing."""
        return {}

    def adversary(self) -> Adversary | None:
        """Give the discriminator, if there is one."""
        if self.discriminator is None:
            return None
        return Adversary(network=self.discriminator, lr=self.config.discriminator_lr)

    def no_weight_decay(self, name: str) -> bool:
        """Spare the codebook: only the direction of its rows counts."""
        return name == "codebook"

    def batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """Give shuffled training images."""
        return batches(self.train, batch_size=batch_size, seed=self.seed, start=start, workers=self.workers)

    def loss(
        self, model: VQModel, batch: Batch, rng: torch.Generator, step: int = 0
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Give all losses by their weights, and the parts unweighted.

        Pixel errors, the two quantiser losses (van den Oord et al., arXiv 1711.00937, eq. 3), the perceptual distance;
        and, from the start step on, the adversarial loss and, with weight 1, the discriminator's own.
        """
        images = to_float(batch.images)
        latents = model.latents(images)
        if model.training and not self.config.decoder_only:
            self.use.revive(model.codebook, latents.detach().movedim(1, -1).flatten(0, -2), rng)
        output = model.reconstruct(latents)
        if model.training:
            self.use.observe(output.codes)
        drawn = output.images.float()
        config = self.config
        l1, l2 = F.l1_loss(drawn, images), F.mse_loss(drawn, images)
        quantizer = output.codebook_loss + output.commitment_loss
        parts: dict[str, Tensor | float] = {"l1": l1.detach(), "l2": l2.detach(), "quantizer": quantizer.detach()}
        likeness = config.l1_weight * l1 + config.l2_weight * l2
        if self.perceptual is not None and step >= config.perceptual_start:
            perceptual = self.perceptual.to(images.device)(drawn, images)
            likeness = likeness + config.perceptual_weight * perceptual
            parts["perceptual"] = perceptual.detach()
        total = likeness + config.codebook_weight * quantizer
        if self.discriminator is not None and model.training and step >= config.adversarial_start:
            loss, more = self._contest(self.discriminator, model, drawn, images, likeness)
            total, parts = total + loss, parts | more
            parts["loss"] = (total - parts["discriminator"]).detach()  # the model's own
        return total, parts

    def _contest(
        self, discriminator: Discriminator, model: VQModel, drawn: Tensor, images: Tensor, likeness: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Give the sum of the adversarial loss, weighted, and of the discriminator's, and what to report."""
        generator_loss, discriminator_loss, real_logits, fake_logits = contest(discriminator, drawn, images)
        parts: dict[str, Tensor | float] = {
            "adversarial": generator_loss.detach(),
            "discriminator": discriminator_loss.detach(),
            "real_logits": real_logits,
            "drawn_logits": fake_logits,
        }
        weighted = self.config.adversarial_weight * generator_loss
        if self.config.adversarial_adaptive:
            weight = adaptive_weight(likeness, generator_loss, model.decoder.head.weight)
            weighted = weight * weighted
            parts["adaptive_weight"] = weight
        return weighted + discriminator_loss, parts

    @torch.no_grad()
    def evaluate(self, model: VQModel) -> dict[str, float]:
        """Quality on held-out images: L2, PSNR (dB, mean over images), share of codes used, code perplexity.

        Where there is a perceptual loss, its mean as well.
        """
        errors, distances, counts = [], [], torch.zeros(model.config.codebook_size)
        for start in range(0, len(self.held_out), _IMAGES_AT_ONCE):
            images = self._held_out_images(model, range(start, min(start + _IMAGES_AT_ONCE, len(self.held_out))))
            output = model(images)
            drawn = output.images.clamp(-1, 1)
            errors.append((drawn - images).square().mean(dim=(1, 2, 3)).cpu())
            if self.perceptual is not None:
                distances.append(self.perceptual.to(images.device).distances(drawn, images).cpu())
            counts += torch.bincount(output.codes.flatten(), minlength=len(counts)).cpu()
        error = torch.cat(errors)
        share = counts / counts.sum()
        perceptual = {"perceptual": float(torch.cat(distances).mean())} if distances else {}
        return {
            "l2": float(error.mean()),
            "psnr": float(10 * torch.log10(4 / error.clamp(min=1e-10)).mean()),
            "codes_used": float((counts > 0).float().mean()),
            "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
            **perceptual,
        }

    @torch.no_grad()
    def sheet(self, model: VQModel) -> Image:
        """Held-out originals, and below them their reconstructions, of as many classes as fit."""
        labels = np.asarray(self.held_out.labels)
        firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
        picked = (firsts + [index for index in range(len(labels)) if index not in firsts])[:_SHEET_COLUMNS]
        images = self._held_out_images(model, picked)
        rows = [to_images(images.cpu()), to_images(model(images).images.float().cpu())]
        names = [self.held_out.class_names[label] for label in labels[picked]]
        return sheet(rows, row_names=["original", "reconstruction"], column_names=names)

    def save(self, model: VQModel, folder: Path) -> None:
        """Write the tokenizer."""
        model.save_pretrained(folder)

    def _held_out_images(self, model: VQModel, indices: "range | list[int]") -> Tensor:
        stacked = np.stack([self.held_out.image(index, None) for index in indices])
        return to_float(torch.from_numpy(stacked).permute(0, 3, 1, 2)).to(model.codebook.device)


def _discriminator(config: TokenizerTaskConfig, size: int, seed: int) -> Discriminator:
    shape = DiscriminatorConfig(channels=config.discriminator_channels, layers=config.discriminator_layers)
    check(
        size >= shape.smallest_side,
        f"task.discriminator_layers = {shape.layers} needs images of at least {shape.smallest_side} pixels, "
        f"got {size}; ask for fewer layers",
    )
    discriminator = Discriminator(shape)
    discriminator.init_weights(torch.Generator().manual_seed(seed))
    return discriminator
