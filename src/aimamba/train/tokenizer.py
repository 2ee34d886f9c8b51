"""Stage 1: learn to write a picture as codes and to draw it again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.config import check
from aimamba.data.loader import Batch, batches
from aimamba.data.pictures import Pictures
from aimamba.data.sheets import sheet, to_float, to_images
from aimamba.models import VQModel
from aimamba.train.codebook import CodebookUse

_PICTURES_AT_ONCE = 32
_SHEET_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class TokenizerTaskConfig:
    """What the tokenizer is asked to do well.

    Attributes:
        l1_weight: Weight of the mean absolute error of pixels in [-1, 1].
        l2_weight: Weight of their mean squared error.
        codebook_weight: Weight of the codebook and commitment losses together.
    """

    l1_weight: float = 0.0
    l2_weight: float = 1.0
    codebook_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("l1_weight", "l2_weight", "codebook_weight"):
            check(getattr(self, name) >= 0, f"task.{name} must not be negative, got {getattr(self, name)}")


class TokenizerTask:
    """Reconstruction through the codebook."""

    def __init__(
        self,
        model: VQModel,
        train: Pictures,
        held_out: Pictures,
        config: TokenizerTaskConfig,
        *,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.model = model
        self.train = train
        self.held_out = held_out
        self.config = config
        self.seed = seed
        self.workers = workers
        self.use = CodebookUse(model.config.codebook_size)

    def companions(self) -> dict[str, nn.Module]:
        """Name what else training changes: the running use of the codes."""
        return {"codebook_use": self.use}

    def no_weight_decay(self, name: str) -> bool:
        """Spare the codebook: only the direction of its rows counts."""
        return name == "codebook"

    def batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """Give shuffled training pictures."""
        return batches(self.train, batch_size=batch_size, seed=self.seed, start=start, workers=self.workers)

    def loss(self, model: VQModel, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Pixel errors and the two quantiser losses (van den Oord et al., arXiv 1711.00937, eq. 3)."""
        images = to_float(batch.images)
        latents = model.latents(images)
        if model.training:
            self.use.revive(model.codebook, latents.detach().movedim(1, -1).flatten(0, -2), rng)
        output = model.reconstruct(latents)
        if model.training:
            self.use.observe(output.codes)
        drawn = output.images.float()
        l1, l2 = F.l1_loss(drawn, images), F.mse_loss(drawn, images)
        quantizer = output.codebook_loss + output.commitment_loss
        config = self.config
        total = config.l1_weight * l1 + config.l2_weight * l2 + config.codebook_weight * quantizer
        return total, {"l1": l1.detach(), "l2": l2.detach(), "quantizer": quantizer.detach()}

    @torch.no_grad()
    def evaluate(self, model: VQModel) -> dict[str, float]:
        """Quality on held-out pictures: L2, PSNR (dB, mean over pictures), share of codes used, code perplexity."""
        errors, counts = [], torch.zeros(model.config.codebook_size)
        for start in range(0, len(self.held_out), _PICTURES_AT_ONCE):
            images = self._held_out_images(model, range(start, min(start + _PICTURES_AT_ONCE, len(self.held_out))))
            output = model(images)
            errors.append((output.images.clamp(-1, 1) - images).square().mean(dim=(1, 2, 3)).cpu())
            counts += torch.bincount(output.codes.flatten(), minlength=len(counts)).cpu()
        error = torch.cat(errors)
        share = counts / counts.sum()
        return {
            "l2": float(error.mean()),
            "psnr": float(10 * torch.log10(4 / error.clamp(min=1e-10)).mean()),
            "codes_used": float((counts > 0).float().mean()),
            "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
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
        stacked = np.stack([self.held_out.picture(index, None) for index in indices])
        return to_float(torch.from_numpy(stacked).permute(0, 3, 1, 2)).to(model.codebook.device)
