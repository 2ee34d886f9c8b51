"""What a recipe trains, on the meta device: the networks without their numbers, and the memory of their steps.

Neither images nor codes nor a tokenizer are opened. What a generator takes from them (codebook, codes of an image,
classes) comes from its recipe, from the recipe or the folder of its tokenizer, or is assumed and noted.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from aimamba.checkpoints.locate import is_here
from aimamba.config import check, from_mapping
from aimamba.data.loader import Batch
from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiM, AiMConfig, VQConfig, VQModel
from aimamba.models.text import TextCondition
from aimamba.networks.efficientnet import FEATURE_WIDTHS, EfficientNetLite0
from aimamba.networks.perceptual import VGG16, PerceptualLoss
from aimamba.ops.loss.cross_entropy import cost_of_even_targets
from aimamba.train.codebook import CodebookUse
from aimamba.train.conditions import Conditions
from aimamba.train.distillation import guided_divergence
from aimamba.train.frozen import frozen_copy, log_likelihood
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.plan.on_paper import Needs, Place, cross_entropy, needs, stand_in_for_mixers
from aimamba.train.random_order import NextPlaces
from aimamba.train.rear import VectorHeads
from aimamba.train.recipe import Recipe, load_recipe, recipe_names
from aimamba.train.stages import check_codes, model_config
from aimamba.train.tokenizer import TokenizerTask
from aimamba.train.tokenizer_settings import TokenizerTaskConfig
from aimamba.train.tuning import choose_trained

META = torch.device("meta")
_FEW = 4  # of so many blocks and of twice as many a step is traced; the others are like them
_OFFICIAL = {"hp-l33/aim-base": "aim-b", "hp-l33/aim-large": "aim-l", "hp-l33/aim-xlarge": "aim-xl"}
# How many usual steps one of an objective is. A forward pass is a third of a step: `cca` has two rows of each image in
# the model, and in the frozen copy, which has no backward pass; `distillation` has them in the copy alone.
_WORK = {"likelihood": 1.0, "cca": 8 / 3, "distillation": 5 / 3}
_LATE = 1 << 40  # a step at which all losses have started


@dataclass(frozen=True)
class Outline:
    """The networks of a recipe.

    Attributes:
        parameters: Number of parameters of the model.
        trained: Numbers that are trained: those of the model that learn, and those of a discriminator or
            of heads.
        averaged: Numbers of which there is a moving average.
        frozen: Bytes of networks that are not trained and never sharded.
        shared: Further bytes of them with several processes; one process shares them with the model.
        work: Operations of a step, in those of a forward and a backward pass for each image.
        blocks: Numbers of the matrices of the blocks, which several processes exchange in bfloat16.
        largest: Those of the largest block.
        tokens: Codes of an image.
        trace: Computes the needs of a step from the images at once, the place and whether activations are computed
            again.
        notes: What was assumed, one line each.
    """

    parameters: int
    trained: int
    averaged: int
    frozen: int
    blocks: int
    largest: int
    tokens: int
    trace: Callable[[int, Place, bool], Needs]
    shared: int = 0
    work: float = 1.0
    notes: tuple[str, ...] = ()


def outline(recipe: Recipe) -> Outline:
    """Return what a recipe trains.

    Raises:
        ConfigError: A setting is unknown or has a wrong value.
        CheckpointError: The tokenizer's folder, or ``init``, is damaged.
    """
    return _of_tokenizer(recipe) if recipe.stage == "tokenizer" else _of_generator(recipe)


def _count(module: nn.Module, *, learning: bool = False) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not learning)


def _of_generator(recipe: Recipe) -> Outline:
    task = from_mapping(GeneratorTaskConfig, recipe.task, where="recipe: task")
    task.check_start(recipe.init)
    notes: list[str] = []
    config = _generator_config(recipe, task, notes)
    heads, has_copy = _heads(recipe, task, config), task.objective != "likelihood"
    with META:
        next_places = NextPlaces.of(config) if task.random_order else None
    beside = [network for network in (heads, next_places) if network is not None]

    def trace(blocks: int, batch: int, place: Place, checkpointing: bool) -> Needs:
        model = _on_meta(dataclasses.replace(config, num_blocks=blocks), task)
        copy = frozen_copy(model) if has_copy else None
        for each in (model, copy):
            if each is not None:
                stand_in_for_mixers(each, place)

        def loss() -> Tensor:
            if copy is not None:
                return _beside_copy(task, model, copy, batch, place, checkpointing)
            (labels, captions), codes, mask = _batch_of(task, model, batch)
            states = None if heads is None else dict.fromkeys(min(after, blocks) for after in heads.empty_states())
            options = {"token_mask": mask, "checkpointing": checkpointing, "states": states}
            if next_places is not None:
                options |= {"places": codes[:, :-1], "added": next_places(codes)}
            hidden = model(codes[:, :-1], labels, captions, head=False, **options)
            given = hidden.flatten(0, 1), model.word_embedding.weight, codes.flatten()
            found = cross_entropy(*given, place)
            if task.label_smoothing:
                found = found + cost_of_even_targets(*given)
            if heads is not None and states is not None:
                seen = {after: states[min(after, blocks)] for after in heads.empty_states()}
                found = found + sum(heads.losses(seen, codes).values())
            return found

        return needs([model, *beside], loss, place)

    def trace_all(batch: int, place: Place, checkpointing: bool) -> Needs:
        every = config.hybrid_every or 1
        least = -(-_FEW // every) * every  # so that the mixers of a hybrid have their shares
        most = 2 * least
        if config.num_blocks <= most:
            return trace(config.num_blocks, batch, place, checkpointing)
        few, more = (trace(blocks, batch, place, checkpointing) for blocks in (least, most))
        further = (config.num_blocks - most) / (most - least)
        pairs = zip(dataclasses.astuple(few), dataclasses.astuple(more), strict=True)
        return Needs(*(round(large + further * (large - small)) for small, large in pairs))

    model = _on_meta(config, task)
    trained, of_others = _count(model, learning=True), sum(map(_count, beside))
    vectors = 0 if heads is None else heads.vectors.numel()
    blocks = [sum(w.numel() for w in block.mixer.parameters() if w.ndim == 2) for block in model.blocks]
    return Outline(
        parameters=_count(model),
        trained=trained + of_others,
        averaged=trained,
        frozen=4 * (trained if has_copy else of_others + vectors),
        shared=4 * (_count(model) - trained) if has_copy else 0,
        work=_WORK[task.objective],
        blocks=sum(blocks),
        largest=max(blocks),
        tokens=config.num_tokens,
        trace=trace_all,
        notes=tuple(notes),
    )


def _batch_of(task: GeneratorTaskConfig, model: AiM, rows: int) -> tuple[Conditions, Tensor, Tensor | None]:
    """Return conditions, codes and, with token dropout, factors of some images, on the meta device."""
    config, condition = model.config, model.condition
    labels = torch.empty(rows, dtype=torch.long, device=META)
    captions = condition.text.no_captions(rows) if isinstance(condition, TextCondition) else None
    codes = torch.empty(rows, config.num_tokens, dtype=torch.long, device=META)
    shape = (rows, config.num_tokens - 1, config.width)
    return Conditions(labels, captions), codes, torch.empty(shape, device=META) if task.token_dropout else None


def _beside_copy(
    task: GeneratorTaskConfig, model: AiM, copy: AiM, batch: int, place: Place, checkpointing: bool
) -> Tensor:
    """Compute the loss of an objective that has a frozen copy, which takes two rows of each image."""
    options: dict[str, Any] = {"checkpointing": checkpointing, "logits_at_once": place.logits_at_once}
    if task.objective == "distillation":
        given, codes, mask = _batch_of(task, model, batch)
        return guided_divergence(model, copy, given, mask, codes[:, :-1], task.distilled_scale, **options).sum()
    given, codes, mask = _batch_of(task, model, 2 * batch)
    inputs = given, codes, mask, codes[:, :-1]
    with torch.no_grad():
        before = log_likelihood(copy, *inputs, logits_at_once=place.logits_at_once)
    return (log_likelihood(model, *inputs, **options) - before).sum()


def _on_meta(config: AiMConfig, task: GeneratorTaskConfig) -> AiM:
    with META:
        model = AiM(config).train()
    choose_trained(model, task)
    return model


def _generator_config(recipe: Recipe, task: GeneratorTaskConfig, notes: list[str]) -> AiMConfig:
    """Return the shape of a generator, or of the one it starts from, with what it takes from its codes."""
    shape, place = recipe.model, task.tokenizer or str(recipe.init)
    if recipe.init is not None:
        if is_here(recipe.init):
            config = AiM.from_pretrained(recipe.init, device="meta").config
            if (codes := _shape_of_tokenizer(place, [])) is not None and recipe.data.size > 0:
                check_codes(recipe.init, config, codes.codebook_size, (recipe.data.size // codes.downsampling) ** 2)
            return config
        if recipe.init in _OFFICIAL:
            notes.append(f"{recipe.init} was not opened: its published shape is taken")
            return AIM_PRESETS[_OFFICIAL[recipe.init]]
        before = _named(recipe.init, "generator")
        shape = before.model if before is not None else shape
        if before is None:
            notes.append(f"{recipe.init} was not opened: its shape is taken from the recipe")
    tokenizer = _shape_of_tokenizer(place, notes)
    if tokenizer is None:
        tokenizer = VQ_PRESETS["vq-f16"]
        if not {"vocab_size", "num_tokens"} <= shape.keys():
            notes.append(f"{place} was not opened: a tokenizer like vq-f16 is assumed")
    if "num_classes" not in shape:
        notes.append(f"classes were not counted: {AiMConfig().num_classes:,} are assumed")
    check(
        recipe.data.size > 0 or "num_tokens" in shape,
        f"data.size = 0 is the size of the images of 'init', and {recipe.init} is not here; give the size in pixels "
        "(--size)",
    )
    side = recipe.data.size // tokenizer.downsampling
    of_codes = {"vocab_size": tokenizer.codebook_size, "num_tokens": side * side}
    return model_config(AiMConfig, AIM_PRESETS, {**of_codes, **shape})


def _shape_of_tokenizer(place: str, notes: list[str]) -> VQConfig | None:
    """Return the shape of a tokenizer that is here or that a packaged recipe would make, or None."""
    if is_here(place):
        return VQModel.from_pretrained(place, device="meta").config
    its = _named(place, "tokenizer")
    return None if its is None else _tokenizer_config(its, notes)


def _heads(recipe: Recipe, task: GeneratorTaskConfig, config: AiMConfig) -> VectorHeads | None:
    """Return the heads that learn codebook vectors, if the recipe has them."""
    if not task.rear_weight:
        return None
    tokenizer = _shape_of_tokenizer(task.tokenizer or str(recipe.init), []) or VQ_PRESETS["vq-f16"]
    vectors = torch.empty(config.vocab_size, tokenizer.codebook_dim, device=META)
    return VectorHeads(vectors, width=config.width, blocks=config.num_blocks, **task.rear_after)


def _tokenizer_config(recipe: Recipe, notes: list[str]) -> VQConfig:
    """Return the shape of a tokenizer, or of the one it starts from."""
    if recipe.init is not None:
        if is_here(recipe.init):
            return VQModel.from_pretrained(recipe.init, device="meta").config
        if (before := _named(recipe.init, "tokenizer")) is not None:
            return _tokenizer_config(before, notes)
        notes.append(f"{recipe.init} was not opened: its shape is taken from the recipe")
    return model_config(VQConfig, VQ_PRESETS, recipe.model)


def _named(place: str, stage: str) -> Recipe | None:
    """Return the packaged recipe of a stage whose run would be in ``place``, such as ``runs/avatars-64-vq``."""
    name = Path(place).name
    if name not in recipe_names():
        return None
    found = load_recipe(name)
    return found if found.stage == stage else None


def _of_tokenizer(recipe: Recipe) -> Outline:
    task_config = from_mapping(TokenizerTaskConfig, recipe.task, where="recipe: task")
    notes: list[str] = []
    config = _tokenizer_config(recipe, notes)
    task_config.check_recipe(recipe, config.downsampling)
    size = recipe.data.size
    task = _tokenizer_task(config, task_config, size)
    beside = (task.discriminator, task.next_vector)
    networks: list[nn.Module] = [task.model, *(network for network in beside if network is not None)]

    def trace(batch: int, place: Place, _checkpointing: bool) -> Needs:
        if task.next_vector is not None:
            stand_in_for_mixers(task.next_vector, place)

        def loss() -> Tensor:
            images = torch.empty(batch, 3, size, size, dtype=torch.uint8, device=META)
            labels = torch.empty(batch, dtype=torch.long, device=META)
            return task.loss(task.model, Batch(images, labels), torch.Generator(), _LATE)[0]

        return needs(networks, loss, place)

    total = sum(_count(network) for network in networks)
    frozen = [*task.perceptual.parameters(), *task.perceptual.buffers()] if task.perceptual is not None else []
    return Outline(
        parameters=_count(task.model),
        trained=sum(_count(network, learning=True) for network in networks),
        averaged=_count(task.model),
        frozen=sum(weight.numel() * weight.element_size() for weight in frozen) + 4 * (total - _count(task.model)),
        blocks=0,
        largest=0,
        tokens=(size // config.downsampling) ** 2,
        trace=trace,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class NoImages:
    """An ``ImageSet`` of which only the size is known."""

    size: int
    class_names: tuple[str, ...] = ()

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """No labels."""
        return np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Return 0."""
        return 0

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Raise IndexError: there are none."""
        raise IndexError(index)


class _NoUse(CodebookUse):
    """Counts no codes and revives none: which are dead depends on numbers."""

    def revive(self, *_: Any) -> None:
        """Do nothing."""

    def observe(self, *_: Any) -> None:
        """Do nothing."""

    def end_step(self, *_: Any) -> None:
        """Do nothing."""


def _tokenizer_task(config: VQConfig, settings: TokenizerTaskConfig, size: int) -> TokenizerTask:
    images = NoImages(size)
    with META:
        model = VQModel(config).train()
        task = TokenizerTask(model, images, images, dataclasses.replace(settings, perceptual_weight=0.0))
        task.config, task.use = settings, _NoUse(config.codebook_size)
        if settings.perceptual_weight:
            task.perceptual = _perceptual(settings)
    return task


def _perceptual(settings: TokenizerTaskConfig) -> PerceptualLoss:
    if settings.perceptual == "lite0":
        weights = [torch.empty(width) for width in FEATURE_WIDTHS]
        return PerceptualLoss(EfficientNetLite0(), weights, smallest_side=settings.perceptual_side)
    return PerceptualLoss(VGG16(), [torch.empty(width) for width in (64, 128, 256, 512, 512)])
