"""Stage 2: train a generator to predict the codes of images, given their class."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor, nn

from aimamba import distributed
from aimamba.config import check
from aimamba.data.codes import CodeBatch, CodeSet
from aimamba.data.order import ShuffledOrder
from aimamba.data.shards import fingerprint
from aimamba.data.sheets import sheet
from aimamba.generation import SamplingConfig
from aimamba.models import AiM, VQModel
from aimamba.ops.loss.cross_entropy import sliced_cross_entropy
from aimamba.pipeline import Pipeline
from aimamba.train.task import Amount, Example, Objective

_IMAGES_AT_ONCE = 64
_SHEET_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class GeneratorTaskConfig:
    """Settings of the loss and of the sample sheets.

    Attributes:
        tokenizer: The tokenizer that makes the codes: a training run, a saved model, or a hub id.
        label_dropout: Fraction of examples that are trained with the null class instead of their own, which
            classifier-free guidance needs. It applies to the class token and the condition together.
        token_dropout: Fraction of the features of the word embeddings that are set to zero; the others are scaled up.
        checkpointing: Whether to store only the inputs of the blocks for the backward pass and compute the rest again.
            It takes less memory and the time of a second forward pass; the result is the same.
        sheet_pictures: Images of each class on a sample sheet.
        sheet_cfg_scale: Guidance scale of the sample sheet.
        sheet_top_k: Top-k of the sample sheet; 0 samples from all codes.
    """

    tokenizer: str
    label_dropout: float = 0.1
    token_dropout: float = 0.0
    checkpointing: bool = False
    sheet_pictures: int = 4
    sheet_cfg_scale: float = 2.0
    sheet_top_k: int = 0

    def __post_init__(self) -> None:
        check(0 <= self.label_dropout <= 1, f"task.label_dropout must lie in [0, 1], got {self.label_dropout}")
        check(0 <= self.token_dropout < 1, f"task.token_dropout must lie in [0, 1), got {self.token_dropout}")
        check(self.sheet_pictures >= 1, f"task.sheet_pictures must be at least 1, got {self.sheet_pictures}")
        check(self.sheet_cfg_scale >= 0, f"task.sheet_cfg_scale must not be negative, got {self.sheet_cfg_scale}")
        check(self.sheet_top_k >= 0, f"task.sheet_top_k must not be negative, got {self.sheet_top_k}")


class GeneratorTask:
    """Next-token prediction. The tokenizer is not trained; it only decodes the samples for the sheets."""

    def __init__(
        self,
        model: AiM,
        tokenizer: VQModel,
        train: CodeSet,
        held_out: CodeSet,
        class_names: tuple[str, ...],
        config: GeneratorTaskConfig,
        *,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.train = train
        self.held_out = held_out
        self.class_names = class_names
        self.config = config
        self.seed = seed

    def companions(self) -> dict[str, nn.Module]:
        """Return no modules: training changes only the model."""
        return {}

    def basis(self) -> dict[str, str]:
        """Return fingerprints of the tokenizer and the training codes."""
        return {"tokenizer": fingerprint(self.tokenizer), "set of codes": self.train.fingerprint()}

    def adversary(self) -> None:
        """Return None: a generator has no adversary."""

    def no_weight_decay(self, name: str) -> bool:
        """Skip adaLN's table of offsets, which is added rather than multiplied."""
        return name == "adaln.table"

    def amount(self) -> Amount:
        """Return the numbers of images and of their codes."""
        train = self.train
        return Amount(len(train), len(self.held_out), self.model.config.num_tokens, "codes", views=train.views)

    def batches(self, start: int, batch_size: int, *, stride: int | None = None) -> Iterator[CodeBatch]:
        """Yield shuffled training codes."""
        return self.train.batches(batch_size=batch_size, seed=self.seed, start=start, stride=stride)

    def examples(self, start: int, count: int) -> list[Example]:
        """Return numbers and classes of training images."""
        order, labels = ShuffledOrder(len(self.train), self.seed), self.train.labels
        indices = [order.index(position) for position in range(start, start + count)]
        return [Example(index, int(labels[index]), self.class_names[labels[index]]) for index in indices]

    def loss(
        self, model: AiM, batch: CodeBatch, rng: torch.Generator, step: int = 0
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the mean cross entropy of a code, in nats, with some labels replaced by the null class.

        There are no other metrics, and ``step`` has no effect.
        """
        dropped = distributed.uniform(tuple(batch.labels.shape), rng, batch.labels.device) < self.config.label_dropout
        labels = torch.where(dropped, model.condition.null_class, batch.labels)
        mask, checkpointing = self._token_mask(model, batch.codes, rng), self.config.checkpointing
        return code_cross_entropy(model, batch.codes, labels, mask, checkpointing=checkpointing), {}

    @torch.no_grad()
    def evaluate(self, model: AiM) -> dict[str, float]:
        """Return the mean cross entropy of held-out codes given their class, in nats and in bits per code."""
        device, total = model.word_embedding.weight.device, 0.0
        for start in range(0, len(self.held_out), _IMAGES_AT_ONCE):
            chosen = range(start, min(start + _IMAGES_AT_ONCE, len(self.held_out)))
            codes = self.held_out.take(chosen, [0] * len(chosen)).to(device)
            labels = torch.from_numpy(self.held_out.labels[chosen.start : chosen.stop]).to(device)
            total += float(code_cross_entropy(model, codes, labels)) * len(chosen)
        loss = total / len(self.held_out)
        return {"loss": loss, "bits_per_token": loss / math.log(2)}

    def objective(self) -> Objective:
        """Return the bits per token; a model that knows nothing needs log2 of the codebook's size."""
        return Objective("bits_per_token", math.log2(self.model.config.vocab_size))

    def sheet(self, model: AiM) -> Image:
        """Render guided samples, one row for each of the first classes, with the same seeds each time."""
        shown, columns = self.class_names[:_SHEET_CLASSES], self.config.sheet_pictures
        sampling = SamplingConfig(cfg_scale=self.config.sheet_cfg_scale, top_k=self.config.sheet_top_k)
        images = self.pipeline(model)(list(range(len(shown))), columns, sampling, batch_size=64)
        return sheet([images[i * columns : (i + 1) * columns] for i in range(len(shown))], row_names=shown)

    def save(self, model: AiM, folder: Path) -> None:
        """Save tokenizer, generator and class names as a pipeline."""
        self.pipeline(model).save_pretrained(folder)

    def _token_mask(self, model: AiM, codes: Tensor, rng: torch.Generator) -> Tensor | None:
        """Return factors for the word embeddings (B, L - 1, D), or None without token dropout."""
        rate = self.config.token_dropout
        if rate == 0:
            return None
        shape = (codes.shape[0], codes.shape[1] - 1, model.config.width)
        return (distributed.uniform(shape, rng, codes.device) >= rate) / (1 - rate)

    def pipeline(self, model: AiM) -> Pipeline:
        """Return a pipeline of the tokenizer and ``model``."""
        return Pipeline(self.tokenizer.to(model.word_embedding.weight.device), model, self.class_names)


def code_cross_entropy(
    model: AiM, codes: Tensor, labels: Tensor, token_mask: Tensor | None = None, *, checkpointing: bool = False
) -> Tensor:
    """Return the mean cross entropy, in nats, of each code given the class and the codes before it.

    Args:
        model: The generator.
        codes: All codes of the images (B, L).
        labels: Class labels (B).
        token_mask: Factors for the word embeddings (B, L - 1, D).
        checkpointing: Whether to compute the blocks again in the backward pass instead of storing their activations.
    """
    hidden = model(codes[:, :-1], labels, token_mask=token_mask, head=False, checkpointing=checkpointing)
    head = model.word_embedding.weight
    return sliced_cross_entropy(hidden.flatten(0, 1), head, codes.flatten())
