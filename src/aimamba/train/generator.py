"""Stage 2: train a generator to predict the codes of images, given their class."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from aimamba import distributed
from aimamba.config import check
from aimamba.data.codes import CaptionedBatch, CodeBatch, CodeSet
from aimamba.data.order import ShuffledOrder
from aimamba.data.shards import fingerprint
from aimamba.data.sheets import sheet
from aimamba.data.vocabulary import Vocabulary
from aimamba.generation import SamplingConfig
from aimamba.models import AiM, VQModel
from aimamba.models.lora import merged
from aimamba.networks.caption_vectors import CaptionVectors
from aimamba.networks.sentence import MINILM
from aimamba.ops.loss.cross_entropy import sliced_cross_entropy
from aimamba.pipeline import Pipeline, Prompt
from aimamba.seeds import seeded
from aimamba.train.conditions import Conditions
from aimamba.train.parts import MODULES, Adapter, Part
from aimamba.train.rear import CodeNoise, HiddenStates, VectorHeads
from aimamba.train.task import Amount, Auxiliary, Example, Objective

Classes = Literal["match", "extend", "number", "new"]
_IMAGES_AT_ONCE = 64
_SHEET_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class GeneratorTaskConfig:
    """Settings of the loss and of the sample sheets.

    Attributes:
        objective: What is minimised. ``likelihood``: the cross entropy of the codes. ``cca``: condition contrastive
            alignment (arXiv 2410.09347), which turns a model that needs guidance into one that does not; see
            ``aimamba.train.contrastive``. It needs ``init``, which must know all conditions of the images.
        cca_beta: Scale of the logarithm of the likelihood ratio of an image to ``init``.
        cca_lambda: How much images with the condition of another one count, against those with their own.
        tokenizer: The tokenizer that makes the codes: a training run, a saved model, or a hub id. By default that of
            ``init``.
        foreign_tokenizer: Whether ``init`` may go on with another tokenizer than the one it was trained with.
        classes: The classes of a generator that starts from ``init``. ``match``: those of the images; one that has the
            name of a class of ``init`` starts with its vector, and others with that of the null class. ``extend``:
            those of ``init`` stay, and those of the images that it does not have by name are added. ``number``: those
            of the images, with the vectors of ``init`` by number. ``new``: those of the images, all starting with the
            vector of the null class.
        text_encoder: A frozen sentence encoder that reads the captions, in place of byte-pair tokens: ``minilm``, or a
            folder, see ``aimamba.networks.sentence``. Only for a generator that takes captions.
        train: The parts that are trained if there is ``init``; the others keep its weights. ``classes`` is the table of
            class vectors, ``captions`` the encoder of captions, ``embeddings`` those of codes and positions, with the
            head that is tied to them, ``adaln`` the projections of the condition vector, and ``blocks`` mixers and
            norms. ``auto`` is all of them, and with LoRA the classes.
        lora_rank: Rank of the matrices that LoRA adds to frozen layers; 0 is no LoRA. It needs ``init`` and the extra
            ``aimamba[lora]``. The run then saves only the matrices and the other parts that are trained.
        lora_alpha: The product of the two matrices of a layer counts ``lora_alpha / lora_rank``; by default 1.
        lora_layers: The linear layers that get such matrices, by the last part of their names.
        label_dropout: Fraction of examples that are trained with the null class instead of their own, and without a
            caption, which classifier-free guidance needs. It applies to the class token and the condition together.
        class_dropout: Of a generator that takes captions: fraction of the others that are trained without their class,
            so that a prompt can stand alone.
        caption_dropout: Likewise of those that are trained without their caption, so that a class can stand alone.
        token_dropout: Fraction of the features of the word embeddings that are set to zero; the others are scaled up.
        code_noise: Fraction of the codes that the model reads which are replaced by random ones; it still predicts the
            right ones. It learns to recover from its own mistakes, to rely on the condition, and memorises later
            (a part of reAR, arXiv 2510.04450).
        code_noise_until: Step, counted from 0, until which that fraction falls linearly to ``code_noise_end``; 0 keeps
            it constant. reAR takes three quarters of the steps, from 1.0 to 0.
        code_noise_end: Fraction from that step on.
        code_noise_varied: Whether each image has a fraction of its own, uniform between 0 and that of the step, as in
            reAR.
        rear_weight: Weight of the other part of reAR: heads on two hidden states, which no saved model has, recover the
            tokenizer's vector of the code just read, and predict that of the next one. The weight is that of the sum
            of their cosine distances; 0 is no heads, and reAR takes 1.
        rear_recover_after: Number of blocks after which the vector of the code just read is recovered.
        rear_predict_after: Number of blocks after which that of the next code is predicted; 0 is the block at three
            quarters of the depth.
        checkpointing: Whether to store only the inputs of the blocks for the backward pass and compute the rest again.
            It takes less memory and the time of a second forward pass; the result is the same.
        sheet_pictures: Images of each class on a sample sheet.
        sheet_cfg_scale: Guidance scale of the sample sheet.
        sheet_top_k: Top-k of the sample sheet; 0 samples from all codes.
    """

    objective: Literal["likelihood", "cca"] = "likelihood"
    cca_beta: float = 0.02
    cca_lambda: float = 100.0
    tokenizer: str = ""
    foreign_tokenizer: bool = False
    classes: Classes = "match"
    text_encoder: str = ""
    train: Literal["auto", "all"] | Part | tuple[Part, ...] = "auto"
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_layers: tuple[str, ...] = ("in_proj", "out_proj")
    label_dropout: float = 0.1
    class_dropout: float = 0.5
    caption_dropout: float = 0.1
    token_dropout: float = 0.0
    code_noise: float = 0.0
    code_noise_until: int = 0
    code_noise_end: float = 0.0
    code_noise_varied: bool = False
    rear_weight: float = 0.0
    rear_recover_after: int = 1
    rear_predict_after: int = 0
    checkpointing: bool = False
    sheet_pictures: int = 4
    sheet_cfg_scale: float = 2.0
    sheet_top_k: int = 0

    def __post_init__(self) -> None:
        self.noise.check()
        for name in ("cca_beta", "cca_lambda"):
            check(0 < getattr(self, name) < math.inf, f"task.{name} must be positive, got {getattr(self, name)}")
        for name, least in (("rear_weight", 0), ("rear_recover_after", 1), ("rear_predict_after", 0)):
            value = getattr(self, name)
            check(least <= value < math.inf, f"task.{name} must be at least {least}, got {value}")
        check(
            self.objective == "likelihood" or not self.rear_weight,
            "task.rear_weight goes with task.objective = 'likelihood'; set one of them alone",
        )
        for name in ("label_dropout", "class_dropout", "caption_dropout"):
            check(0 <= getattr(self, name) <= 1, f"task.{name} must lie in [0, 1], got {getattr(self, name)}")
        check(0 <= self.token_dropout < 1, f"task.token_dropout must lie in [0, 1), got {self.token_dropout}")
        check(self.sheet_pictures >= 1, f"task.sheet_pictures must be at least 1, got {self.sheet_pictures}")
        check(self.sheet_cfg_scale >= 0, f"task.sheet_cfg_scale must not be negative, got {self.sheet_cfg_scale}")
        check(self.sheet_top_k >= 0, f"task.sheet_top_k must not be negative, got {self.sheet_top_k}")
        check(self.lora_rank >= 0, f"task.lora_rank must not be negative, got {self.lora_rank}")
        alpha = self.lora_alpha
        check(alpha is None or 0 < alpha < math.inf, f"task.lora_alpha must be positive, got {alpha}")
        check(bool(self.lora_layers), "task.lora_layers names no layer; leave it out for in_proj and out_proj")
        check(
            len(set(self.parts)) == len(self.parts) > 0,
            f"task.train must name each part once, and one at least, got {list(self.parts)}",
        )
        whole = self.lora_rank > 0 and "blocks" in self.parts
        check(
            not whole,
            "task.train trains the blocks whole, which LoRA is to spare; leave it out, or name other parts as in "
            '["classes", "adaln"]',
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are trained whole."""
        if self.train == "auto":
            return ("classes",) if self.lora_rank else tuple(MODULES)
        if self.train == "all":
            return tuple(MODULES)
        return self.train if isinstance(self.train, tuple) else (self.train,)

    @property
    def noise(self) -> CodeNoise:
        """The codes that the model reads and that are random ones."""
        return CodeNoise(self.code_noise, self.code_noise_end, self.code_noise_until, self.code_noise_varied)

    @property
    def alpha(self) -> float:
        """``lora_alpha``, or the rank where it is not set."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    def check_start(self, init: str | None) -> None:
        """Check the settings that only a generator with ``init`` has.

        Raises:
            ConfigError: One of them is set, and there is no ``init``.
        """
        defaults = {
            "objective": "likelihood",
            "classes": "match",
            "train": "auto",
            "lora_rank": 0,
            "foreign_tokenizer": False,
        }
        for name, default in defaults.items():
            check(
                init is not None or getattr(self, name) == default,
                f"task.{name} is for a generator that starts from another one; name that in 'init' or with --init",
            )
        check(
            bool(self.tokenizer) or init is not None, "task.tokenizer is missing; give the tokenizer with --tokenizer"
        )


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
        vocabulary: Vocabulary | None = None,
        vectors: CaptionVectors | None = None,
        *,
        seed: int = 0,
        adapter: Adapter | None = None,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.vectors = vectors
        self.tokenizer = tokenizer
        self.train = train
        self.held_out = held_out
        self.class_names = class_names
        self.config = config
        self.seed = seed
        self.adapter = adapter
        self.heads = None
        if config.rear_weight:
            after = {"recover_after": config.rear_recover_after, "predict_after": config.rear_predict_after}
            self.heads = VectorHeads.of(model.config, tokenizer, **after)
            self.heads.init_weights(seeded(seed))

    def companions(self) -> dict[str, nn.Module]:
        """Return no modules: training changes only the model."""
        return {}

    def basis(self) -> dict[str, str]:
        """Return fingerprints of the tokenizer, the training codes and, with LoRA, the frozen weights."""
        base = {} if self.adapter is None else {"init": self.adapter.digest}
        if self.vocabulary is not None:
            base["vocabulary of the captions"] = self.vocabulary.fingerprint()
        if self.vectors is not None:
            base["sentence encoder"] = self.vectors.encoder.fingerprint
        return {"tokenizer": fingerprint(self.tokenizer), "set of codes": self.train.fingerprint(), **base}

    def auxiliary(self) -> Auxiliary | None:
        """Return the heads that learn codebook vectors, if there are any."""
        return None if self.heads is None else Auxiliary(name="vector_heads", network=self.heads, recordable=True)

    def no_weight_decay(self, name: str) -> bool:
        """Skip adaLN's table of offsets, which is added rather than multiplied."""
        return name == "adaln.table"

    def amount(self) -> Amount:
        """Return the numbers of images and of their codes."""
        train = self.train
        return Amount(len(train), len(self.held_out), self.model.config.num_tokens, "codes", views=train.views)

    def batches(
        self, start: int, batch_size: int, *, stride: int | None = None
    ) -> Iterator[CodeBatch | CaptionedBatch]:
        """Yield shuffled training codes, with a caption of each if the generator takes captions."""
        if self.model.config.text is None:
            return self.train.batches(batch_size=batch_size, seed=self.seed, start=start, stride=stride)
        return self.train.captioned_batches(
            self.read, batch_size=batch_size, seed=self.seed, start=start, stride=stride
        )

    def read(self, captions: Sequence[str]) -> Tensor:
        """Return what the generator takes for some captions."""
        if self.vectors is not None:
            return self.vectors.take(captions)
        assert self.vocabulary is not None
        assert self.model.config.text is not None
        return torch.from_numpy(self.vocabulary.encode(captions, self.model.config.text.tokens).ids)

    def examples(self, start: int, count: int) -> list[Example]:
        """Return numbers and classes of training images."""
        order, labels = ShuffledOrder(len(self.train), self.seed), self.train.labels
        indices = [order.index(position) for position in range(start, start + count)]
        return [Example(index, int(labels[index]), self.class_names[labels[index]]) for index in indices]

    def loss(
        self, model: AiM, batch: CodeBatch | CaptionedBatch, rng: torch.Generator, step: int | Tensor = 0
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the mean cross entropy of a code, in nats, with some classes and captions left out.

        With heads it is the metric ``loss``, the distances of ``VectorHeads.losses`` are further ones, and the scalar
        is the weighted sum. Without, there are no metrics. ``step`` decides how many codes are replaced.
        """
        given = Conditions.of(batch).without(*self.left_out(batch, rng), null_class=model.condition.null_class)
        mask, checkpointing = self.token_mask(model, batch.codes, rng), self.config.checkpointing
        read = self.noisy(batch.codes[:, :-1], rng, step)
        states = None if self.heads is None else self.heads.empty_states()
        loss = code_cross_entropy(
            model,
            batch.codes,
            given.labels,
            mask,
            given.captions,
            read=read,
            checkpointing=checkpointing,
            states=states,
        )
        if self.heads is None or states is None:
            return loss, {}
        distances = self.heads.losses(states, batch.codes)
        total = loss + self.config.rear_weight * sum(distances.values())
        return total, {name: value.detach() for name, value in {"loss": loss, **distances}.items()}

    def left_out(self, batch: CodeBatch | CaptionedBatch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return which rows of a batch are trained without their class, and which without a caption, (B,) booleans."""
        bare = self._chosen(batch.labels, self.config.label_dropout, rng)
        if not isinstance(batch, CaptionedBatch):
            return bare, bare
        mute = bare | self._chosen(batch.labels, self.config.caption_dropout, rng)
        return bare | self._chosen(batch.labels, self.config.class_dropout, rng), mute

    def noisy(self, codes: Tensor, rng: torch.Generator, step: int | Tensor) -> Tensor:
        """Return codes of which some are random ones."""
        return self.config.noise.replace(codes, self.model.config.vocab_size, rng, step)

    @staticmethod
    def _chosen(labels: Tensor, share: float, rng: torch.Generator) -> Tensor:
        """Return a random share of a batch, (B,) booleans."""
        return distributed.uniform(tuple(labels.shape), rng, labels.device) < share

    @torch.no_grad()
    def evaluate(self, model: AiM) -> dict[str, float]:
        """Return the mean cross entropy of held-out codes, in nats and in bits per code.

        Given are their class and, if the generator takes captions, the first caption of each.
        """
        device, total = model.word_embedding.weight.device, 0.0
        for start in range(0, len(self.held_out), _IMAGES_AT_ONCE):
            chosen = range(start, min(start + _IMAGES_AT_ONCE, len(self.held_out)))
            codes, given = self.held_out_rows(model, chosen, device)
            total += float(code_cross_entropy(model, codes, given.labels, captions=given.captions)) * len(chosen)
        loss = total / len(self.held_out)
        return {"loss": loss, "bits_per_token": loss / math.log(2)}

    def held_out_rows(self, model: AiM, chosen: Sequence[int], device: torch.device) -> tuple[Tensor, Conditions]:
        """Return the codes (B, L) of some held-out images, and their class and first caption."""
        codes = self.held_out.take(chosen, [0] * len(chosen)).to(device)
        labels = torch.from_numpy(self.held_out.labels[list(chosen)]).to(device)
        if model.config.text is None:
            return codes, Conditions(labels)
        return codes, Conditions(labels, self.read([self.held_out.caption(index) for index in chosen]).to(device))

    def objective(self) -> Objective:
        """Return the bits per token; a model that knows nothing needs log2 of the codebook's size."""
        return Objective("bits_per_token", math.log2(self.model.config.vocab_size))

    def sheet(self, model: AiM) -> Image:
        """Render guided samples, the same seeds each time.

        There is a row for each of the first classes with images, or for some held-out captions.
        """
        columns = self.config.sheet_pictures
        sampling = SamplingConfig(cfg_scale=self.config.sheet_cfg_scale, top_k=self.config.sheet_top_k)
        if model.config.text is None:
            shown = np.unique(self.train.labels)[:_SHEET_ROWS].tolist()
            names = [self.class_names[label] for label in shown]
        else:
            places = np.linspace(0, len(self.held_out) - 1, min(_SHEET_ROWS, len(self.held_out))).astype(int)
            names = [self.held_out.caption(place) for place in places.tolist()]
            shown = [Prompt(name) for name in names]
        images = self.pipeline(model)(shown, columns, sampling, batch_size=64)
        return sheet([images[i * columns : (i + 1) * columns] for i in range(len(shown))], row_names=names)

    def save(self, model: AiM, folder: Path) -> None:
        """Save tokenizer, generator and class names as a pipeline; with LoRA, the generator without frozen weights."""
        save_generator = None if self.adapter is None else self.adapter.saver(model)
        self.pipeline(model).save_pretrained(folder, save_generator=save_generator)

    def token_mask(self, model: AiM, codes: Tensor, rng: torch.Generator) -> Tensor | None:
        """Return factors for the word embeddings (B, L - 1, D), or None without token dropout."""
        rate = self.config.token_dropout
        if rate == 0:
            return None
        shape = (codes.shape[0], codes.shape[1] - 1, model.config.width)
        return (distributed.uniform(shape, rng, codes.device) >= rate) / (1 - rate)

    def pipeline(self, model: AiM) -> Pipeline:
        """Return a pipeline of the tokenizer and ``model``, into whose weights LoRA is merged."""
        tokenizer = self.tokenizer.to(model.word_embedding.weight.device)
        encoder = MINILM if self.vectors is None else self.vectors.encoder
        return Pipeline(tokenizer, merged(model), self.class_names, self.vocabulary, text_encoder=encoder)


def code_cross_entropy(
    model: AiM,
    codes: Tensor,
    labels: Tensor,
    token_mask: Tensor | None = None,
    captions: Tensor | None = None,
    *,
    read: Tensor | None = None,
    checkpointing: bool = False,
    states: HiddenStates | None = None,
) -> Tensor:
    """Return the mean cross entropy, in nats, of each code given the condition and the codes before it.

    Args:
        model: The generator.
        codes: All codes of the images (B, L).
        labels: Class labels (B).
        token_mask: Factors for the word embeddings (B, L - 1, D).
        captions: Of a generator that takes them, see ``aimamba.models.text``.
        read: What the model reads in place of the codes before each (B, L - 1).
        checkpointing: Whether to compute the blocks again in the backward pass instead of storing their activations.
        states: Hidden states to fill in, see ``AiM.forward``.
    """
    before = codes[:, :-1] if read is None else read
    options = {"token_mask": token_mask, "checkpointing": checkpointing, "states": states}
    hidden = model(before, labels, captions, head=False, **options)
    head = model.word_embedding.weight
    return sliced_cross_entropy(hidden.flatten(0, 1), head, codes.flatten())
