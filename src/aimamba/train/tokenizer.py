"""Stage 1: train a tokenizer to encode images as codes and to decode them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba import distributed
from aimamba.data.images import ImageSet
from aimamba.data.loader import Batch, batches
from aimamba.data.order import ShuffledOrder
from aimamba.data.sheets import sheet, to_float, to_pil, to_uint8
from aimamba.models import VQModel
from aimamba.models.gan import (
    Discriminator,
    adaptive_weight,
    adversarial_losses,
    discriminator_losses,
)
from aimamba.models.quantizers import Relaxation
from aimamba.networks.perceptual import perceptual_loss
from aimamba.seeds import seeded
from aimamba.train.causal import NextVector
from aimamba.train.codebook import CodebookAverages, CodebookUse
from aimamba.train.task import Amount, Auxiliary, Example, Objective
from aimamba.train.tokenizer_settings import TokenizerTaskConfig

_IMAGES_AT_ONCE = 32
_SHEET_COLUMNS = 10
_AROUND = 9  # side of the square whose mean a pixel with detail differs from
_OF_DISCRIMINATOR = ("discriminator", "real_logits", "drawn_logits")  # metrics
_LONGEST_LISTED = 80  # characters of the names of the classes in a message


class TokenizerTask:
    """Reconstruction through the codebook, optionally with a perceptual and an adversarial loss."""

    def __init__(
        self,
        model: VQModel,
        train: ImageSet,
        held_out: ImageSet,
        config: TokenizerTaskConfig,
        *,
        seed: int = 0,
        workers: int = 0,
        trained: bool = False,
    ) -> None:
        """Prepare the task.

        Args:
            model: The tokenizer.
            train: Images to train on.
            held_out: Images to evaluate on.
            config: Settings of the losses.
            seed: Seed of the order of the images and of the discriminator's weights.
            workers: Processes that load images; 0 loads them in this process.
            trained: Whether the tokenizer is trained already, so that its codebook is not filled from the data.

        Raises:
            ConfigError: The images are too small for the discriminator, or the perceptual network is not installed.
            CheckpointError: The weights of the perceptual network cannot be loaded.
        """
        self.model = model
        self.train = train
        self.held_out = held_out
        self.config = config
        self.seed = seed
        self.workers = workers
        self.use = (
            CodebookAverages(model.codebook, config.codebook_decay, trained=trained)
            if model.quantizer.codebook == "buffer" and model.codebook is not None
            else CodebookUse(model.config.codebook_size, trained=trained)
        )
        self.perceptual = (
            perceptual_loss(config.perceptual, smallest_side=config.perceptual_side)
            if config.perceptual_weight
            else None
        )
        self.discriminator = None
        if config.adversarial_weight:
            self.discriminator = Discriminator(config.discriminator(train.size))
            self.discriminator.init_weights(seeded(seed))
        self.next_vector = None
        if config.causal_weight:
            self.next_vector = NextVector(model.config.codebook_dim, (train.size // model.config.downsampling) ** 2)
            self.next_vector.init_weights(seeded(seed))
        if config.decoder_only:
            model.requires_grad_(False)
            for part in (model.from_code, model.decoder):
                part.requires_grad_(True)

    def companions(self) -> dict[str, nn.Module]:
        """Return the moving averages of how often each code is used, and of the quantiser ``ema``."""
        return {"codebook_use": self.use}

    def end_step(self, skip: Tensor) -> None:
        """Update a codebook that is a moving average."""
        if not self.config.decoder_only:
            self.use.end_step(self.model.codebook, skip)

    def basis(self) -> dict[str, str]:
        """Return the classes, a fingerprint of the names and labels of the training images, and LPIPS's."""
        names, labels = self.train.class_names, np.asarray(self.train.labels)
        digest = hashlib.sha256(json.dumps([list(names), list(getattr(self.train, "names", ()))]).encode())
        digest.update(labels.astype("<i8").tobytes())
        listed = ", ".join(names)
        classes = listed if len(listed) <= _LONGEST_LISTED else f"{len(names)} classes, {listed[:_LONGEST_LISTED]}..."
        images = {"set of classes": classes, "set of images": f"{len(labels):,} images, {digest.hexdigest()[:12]}"}
        lpips = "" if self.perceptual is None else self.perceptual.fingerprint
        return images | ({"perceptual network": lpips} if lpips else {})

    def auxiliary(self) -> Auxiliary | None:
        """Return the discriminator, or the network of causal regularisation, if there is one."""
        if self.next_vector is not None:
            return Auxiliary(name="next_vector", network=self.next_vector)
        if self.discriminator is None:
            return None
        return Auxiliary(name="adversary", network=self.discriminator, lr=self.config.discriminator_lr)

    def no_weight_decay(self, name: str) -> bool:
        """Skip the codebook, because only the direction of its vectors matters."""
        return name == "codebook"

    def amount(self) -> Amount:
        """Return the numbers of images and of the values of their pixels."""
        values = 3 * self.train.size**2
        return Amount(len(self.train), len(self.held_out), values, "pixel values", workers=self.workers)

    def batches(self, start: int, batch_size: int, *, stride: int | None = None) -> Iterator[Batch]:
        """Yield shuffled training images."""
        read = {"batch_size": batch_size, "seed": self.seed, "start": start, "workers": self.workers}
        return batches(self.train, **read, stride=stride)

    def examples(self, start: int, count: int) -> list[Example]:
        """Return numbers, classes and files of training images."""
        images, order = self.train, ShuffledOrder(len(self.train), self.seed)
        indices = [order.index(position) for position in range(start, start + count)]
        names = getattr(images, "names", [""] * len(images))
        labels = [int(images.labels[index]) for index in indices]
        return [
            Example(i, label, images.class_names[label], names[i]) for i, label in zip(indices, labels, strict=True)
        ]

    def loss(
        self, model: VQModel, batch: Batch, rng: torch.Generator, step: int = 0
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the weighted sum of all losses, and each loss without its weight.

        The sum has the pixel losses, the two quantiser losses (van den Oord et al., arXiv 1711.00937, eq. 3), those of
        ``lfq`` and ``gumbel`` (``VQModel.penalties``), the perceptual loss, and in training causal regularisation. From
        ``adversarial_start`` on it also has the adversarial loss, and from ``discriminator_start`` on, with weight 1,
        the discriminator's own loss.
        """
        config = self.config
        images = to_float(batch.images)
        latents = model.latents(images)
        learns, rows = model.training and not self.config.decoder_only, latents.detach().movedim(1, -1)
        if learns and self.config.revive_codes and model.quantizer.nearest and model.codebook is not None:
            self.use.revive(model.codebook, rows.flatten(0, -2), rng)
        relaxation = None
        if learns and model.config.quantizer == "gumbel":
            relaxation = Relaxation(distributed.uniform(tuple(rows.shape), rng, rows.device), config.temperature(step))
        output = model.reconstruct(latents, relaxation)
        if model.training:
            self.use.observe(output.codes, rows)
        reconstructions = output.images.float()
        reconstruction_loss, pixels = _pixel_loss(reconstructions, images, config)
        quantizer = output.codebook_loss + output.commitment_loss
        parts: dict[str, Tensor | float] = {name: value.detach() for name, value in pixels.items()}
        parts["quantizer"] = quantizer.detach()
        if self.perceptual is not None and step >= config.perceptual_start:
            perceptual = self.perceptual.to(images.device)(reconstructions, images)
            reconstruction_loss = reconstruction_loss + config.perceptual_weight * perceptual
            parts["perceptual"] = perceptual.detach()
        total = reconstruction_loss + config.codebook_weight * quantizer
        weights = config.weights(step)
        for name, value in model.penalties(latents, config.entropy_temperature, distributed.averaged).items():
            total = total + weights[name] * value
            parts[name] = value.detach()
        if self.next_vector is not None and model.training:
            causal = self.next_vector(output.vectors)
            total = total + config.causal_weight * causal
            parts["causal"] = causal.detach()
        if relaxation is not None:
            parts["temperature"] = relaxation.temperature
        if self.discriminator is not None and model.training and step >= config.first_of_discriminator:
            if step >= config.adversarial_start:
                loss, more = self._adversarial_loss(
                    self.discriminator, model, reconstructions, images, reconstruction_loss
                )
            else:
                loss, *logits = discriminator_losses(self.discriminator, reconstructions, images)
                more = dict(zip(_OF_DISCRIMINATOR, (loss.detach(), *logits), strict=True))
            total, parts = total + loss, parts | more
            parts["loss"] = (total - parts["discriminator"]).detach()  # the model's part of it
        return total, parts

    def _adversarial_loss(
        self,
        discriminator: Discriminator,
        model: VQModel,
        reconstructions: Tensor,
        images: Tensor,
        reconstruction_loss: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the weighted adversarial loss plus the discriminator's loss, and the metrics to report."""
        generator_loss, discriminator_loss, real_logits, fake_logits = adversarial_losses(
            discriminator, reconstructions, images
        )
        of_discriminator = dict(
            zip(_OF_DISCRIMINATOR, (discriminator_loss.detach(), real_logits, fake_logits), strict=True)
        )
        parts: dict[str, Tensor | float] = {"adversarial": generator_loss.detach(), **of_discriminator}
        weighted = self.config.adversarial_weight * generator_loss
        if self.config.adversarial_adaptive:
            last = model.decoder.head.weight
            weight = adaptive_weight(reconstruction_loss, generator_loss, last, mean=distributed.mean)
            weighted = weight * weighted
            parts["adaptive_weight"] = weight
        return weighted + discriminator_loss, parts

    @torch.no_grad()
    def evaluate(self, model: VQModel) -> dict[str, float]:
        """Return metrics of the reconstructions of held-out images.

        Returns:
            ``reconstruction``, the sum of the errors of pixels, their differences and features with the weights of
            their losses; ``l2``, the mean squared error; ``psnr`` in dB, a mean over images; ``codes_used``, the
            fraction of the codebook; the ``perplexity`` of the codes; and ``perceptual``, the mean distance, with a
            perceptual loss.
        """
        errors, distances, counts = [], [], torch.zeros(model.config.codebook_size)
        pixels = 0.0
        for start in range(0, len(self.held_out), _IMAGES_AT_ONCE):
            images = self._held_out_images(model, range(start, min(start + _IMAGES_AT_ONCE, len(self.held_out))))
            output = model(images)
            reconstructions = output.images.clamp(-1, 1)
            errors.append((reconstructions - images).square().mean(dim=(1, 2, 3)).cpu())
            pixels += float(_pixel_loss(reconstructions, images, self.config)[0]) * len(images)
            if self.perceptual is not None:
                distances.append(self.perceptual.to(images.device).distances(reconstructions, images).cpu())
            counts += torch.bincount(output.codes.flatten(), minlength=len(counts)).cpu()
        error = torch.cat(errors)
        share = counts / counts.sum()
        perceptual = {"perceptual": float(torch.cat(distances).mean())} if distances else {}
        return {
            "reconstruction": pixels / len(error) + self.config.perceptual_weight * perceptual.get("perceptual", 0.0),
            "l2": float(error.mean()),
            "psnr": float(10 * torch.log10(4 / error.clamp(min=1e-10)).mean()),
            "codes_used": float((counts > 0).float().mean()),
            "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
            **perceptual,
        }

    def objective(self) -> Objective | None:
        """Return the reconstruction error.

        It is None with an adversarial loss, which buys texture with errors of pixels and features: by them, the best
        model would be the one before it began. It is None too if no loss of the reconstruction has a weight.
        """
        config = self.config
        weights = config.l1_weight + config.l2_weight + config.image_gradient_weight + config.perceptual_weight
        return None if config.adversarial_weight or not weights else Objective("reconstruction")

    @torch.no_grad()
    def sheet(self, model: VQModel) -> Image:
        """Render held-out originals above their reconstructions, of as many classes as fit."""
        labels = np.asarray(self.held_out.labels)
        firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
        picked = (firsts + [index for index in range(len(labels)) if index not in firsts])[:_SHEET_COLUMNS]
        images = self._held_out_images(model, picked)
        rows = [to_pil(to_uint8(x)) for x in (images, model(images).images)]
        names = [self.held_out.class_names[label] for label in labels[picked]]
        return sheet(rows, row_names=["original", "reconstruction"], column_names=names)

    def save(self, model: VQModel, folder: Path) -> None:
        """Save the tokenizer."""
        model.save_pretrained(folder)

    def _held_out_images(self, model: VQModel, indices: "range | list[int]") -> Tensor:
        stacked = np.stack([self.held_out.image(index, None) for index in indices])
        return to_float(torch.from_numpy(stacked).permute(0, 3, 1, 2)).to(model.device)


def _pixel_loss(
    reconstructions: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"], config: TokenizerTaskConfig
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Return the weighted sum of the losses of pixels, and each loss without its weight, by name."""
    difference, detail = reconstructions - images, detail_weights(images, config.detail_weight)
    losses = {"l1": (detail * difference.abs()).mean(), "l2": (detail * difference.square()).mean()}
    total = config.l1_weight * losses["l1"] + config.l2_weight * losses["l2"]
    if config.image_gradient_weight:
        losses["image_gradient"] = image_gradients(difference)
        total = total + config.image_gradient_weight * losses["image_gradient"]
    return total, losses


def detail_weights(images: Float[Tensor, "b 3 h w"], detail_weight: float) -> Float[Tensor, "..."]:
    """Return how much errors of pixels count: (b, 1, h, w), or one number where all count alike.

    Args:
        images: What is to be drawn.
        detail_weight: See ``TokenizerTaskConfig``.
    """
    if not detail_weight:
        return images.new_ones(())
    around = F.avg_pool2d(images, _AROUND, stride=1, padding=_AROUND // 2, count_include_pad=False)
    return 1 + detail_weight * (images - around).abs().amax(dim=1, keepdim=True)


def image_gradients(images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference between pixels and their neighbours, to the right plus below.

    Of an image without neighbours in a direction, that one counts 0.
    """
    apart = (images.diff(dim=axis).abs() for axis in (-1, -2))
    return torch.stack([each.mean() if each.numel() else images.new_zeros(()) for each in apart]).sum()
