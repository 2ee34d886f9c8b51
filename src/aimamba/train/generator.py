"""Stage 2: train a generator to predict the codes of images, given their class."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from aimamba import distributed
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
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.parts import Adapter
from aimamba.train.random_order import NextPlaces
from aimamba.train.rear import HiddenStates, VectorHeads
from aimamba.train.task import Amount, Auxiliary, Example, Objective

_IMAGES_AT_ONCE = 64
_SHEET_ROWS = 10


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
            self.heads = VectorHeads.of(model.config, tokenizer, **config.rear_after)
            self.heads.init_weights(seeded(seed))
        self.next_places = None
        if config.random_order:
            self.next_places = NextPlaces.of(model.config)
            self.next_places.init_weights(seeded(seed))
        beside = {"vector_heads": self.heads, "next_places": self.next_places}
        self._beside = nn.ModuleDict({name: network for name, network in beside.items() if network is not None})

    def end_step(self, skip: Tensor) -> None:
        """Do nothing: optimisers change all there is."""

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
        """Return the heads that learn codebook vectors and the vectors of next places, if there are any."""
        if len(self._beside) > 1:
            return Auxiliary(name="auxiliary", network=self._beside, recordable=True)
        return next((Auxiliary(name=name, network=one, recordable=True) for name, one in self._beside.items()), None)

    def no_weight_decay(self, name: str) -> bool:
        """Skip adaLN's table of offsets and biases of heads, which are added rather than multiplied."""
        return name == "adaln.table" or name.endswith("_bias")

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
        """Return the mean cross entropy of a code, in nats, with some classes and captions left out, labels smoothed.

        With heads it is the metric ``loss``, the distances of ``VectorHeads.losses`` are further ones, and the scalar
        is the weighted sum. Without, there are no metrics. ``step`` decides how many codes are replaced.
        """
        given = Conditions.of(batch).without(*self.left_out(batch, rng), null_class=model.condition.null_class)
        mask, checkpointing = self.token_mask(model, batch.codes, rng), self.config.checkpointing
        codes, order = batch.codes, None
        if self.next_places is not None:
            order = self.config.order.draw(len(codes), codes.shape[1], rng, step)
            codes = codes.gather(1, order)
        states = None if self.heads is None else self.heads.empty_states()
        loss = code_cross_entropy(
            model,
            codes,
            given.labels,
            mask,
            given.captions,
            read=self.noisy(codes[:, :-1], rng, step),
            places=None if order is None else order[:, :-1],
            added=None if order is None or self.next_places is None else self.next_places(order),
            smoothing=self.config.label_smoothing,
            checkpointing=checkpointing,
            states=states,
        )
        if self.heads is None or states is None:
            return loss, {}
        distances = self.heads.losses(states, codes)
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
            shown = [Prompt.of_caption(name) for name in names]
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
    places: Tensor | None = None,
    added: Tensor | None = None,
    smoothing: float = 0.0,
    checkpointing: bool = False,
    states: HiddenStates | None = None,
) -> Tensor:
    """Return the mean cross entropy, in nats, of each code given the condition and the codes before it.

    Args:
        model: The generator.
        codes: All codes of the images (B, L), in the order in which they are predicted.
        labels: Class labels (B).
        token_mask: Factors for the word embeddings (B, L - 1, D).
        captions: Of a generator that takes them, see ``aimamba.models.text``.
        read: What the model reads in place of the codes before each (B, L - 1).
        places: Their places in the image (B, L - 1), see ``AiM.forward``, as the next.
        added: Added to the condition vector and their embeddings (B, L, D).
        smoothing: Label smoothing, see ``sliced_cross_entropy``.
        checkpointing: Whether to compute the blocks again in the backward pass instead of storing their activations.
        states: Hidden states to fill in, see ``AiM.forward``.
    """
    before = codes[:, :-1] if read is None else read
    options = {"token_mask": token_mask, "checkpointing": checkpointing, "states": states}
    hidden = model(before, labels, captions, places=places, added=added, head=False, **options)
    head = model.word_embedding.weight
    return sliced_cross_entropy(hidden.flatten(0, 1), head, codes.flatten(), smoothing=smoothing)
