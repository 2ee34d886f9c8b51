"""Turn a recipe into a task: open the images, build the model, load the tokenizer."""

import dataclasses
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from aimamba.checkpoints.checkpoint import Checkpoint, open_checkpoint
from aimamba.config import check, from_mapping, to_mapping
from aimamba.data.codes import CodeSet, encode_images
from aimamba.data.codes_meta import META_FILE
from aimamba.data.encoding import encode_splits
from aimamba.data.images import has_captions
from aimamba.data.sets import Splits, open_splits
from aimamba.data.shards import open_code_splits
from aimamba.errors import CheckpointError, ConfigError, suggest
from aimamba.files import expand_home
from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiM, AiMConfig, VQConfig, VQModel
from aimamba.models.text import TextConfig
from aimamba.pipeline import saved_class_names
from aimamba.seeds import seeded
from aimamba.train.best import not_finite
from aimamba.train.contrastive import ContrastiveTask, check_contrast
from aimamba.train.distillation import DistillationTask
from aimamba.train.frozen import check_known, check_loop
from aimamba.train.generator import GeneratorTask
from aimamba.train.generator_settings import Classes, GeneratorTaskConfig
from aimamba.train.kept_codes import changed_since, describe, holds_codes_of, write_description
from aimamba.train.parts import Adapter
from aimamba.train.reading import Reading
from aimamba.train.recipe import DataConfig, Recipe, check_trained
from aimamba.train.task import Model, Task
from aimamba.train.tokenizer import TokenizerTask
from aimamba.train.tokenizer_settings import TokenizerTaskConfig
from aimamba.train.tuning import ClassTable, check_fits, choose_trained, class_table, with_captions, with_classes

_FROM_CODES = ("vocab_size", "num_tokens", "num_classes", "tokenizer")  # settings of a generator that its codes decide
_TASKS = {"likelihood": GeneratorTask, "cca": ContrastiveTask, "distillation": DistillationTask}

Config = TypeVar("Config", AiMConfig, VQConfig)


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe ``values`` with all settings filled in from its preset and the defaults.

    Settings that have no effect are left out: the shape of the model if there is ``init``, and the settings of a
    generator that follow from its codes.

    Raises:
        ConfigError: A setting is unknown or has a wrong value.
    """
    recipe = from_mapping(Recipe, values, where="recipe")
    task: TokenizerTaskConfig | GeneratorTaskConfig
    shape: VQConfig | AiMConfig
    if recipe.stage == "tokenizer":
        task = from_mapping(TokenizerTaskConfig, recipe.task, where="recipe: task")
        shape = model_config(VQConfig, VQ_PRESETS, {} if recipe.init is not None else recipe.model)
    else:
        task = from_mapping(GeneratorTaskConfig, recipe.task, where="recipe: task")
        shape = model_config(AiMConfig, AIM_PRESETS, {} if recipe.init is not None else recipe.model)
    settings = {name: value for name, value in to_mapping(shape).items() if name not in _FROM_CODES}
    if recipe.init is not None:
        new = _new_text(recipe) if recipe.stage == "generator" else None
        settings = {} if new is None else {"text": to_mapping(new)}
    return {**to_mapping(recipe), "model": settings, "task": to_mapping(task)}


def make_task(
    recipe: Recipe,
    *,
    device: torch.device,
    codes: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> Task[Any, Any]:
    """Prepare the task that ``recipe`` describes.

    Args:
        recipe: The recipe.
        device: Where to encode the images of a generator.
        codes: Folder to store the codes of a generator's images in; None keeps them in memory.
        log: Called with a line about each step that takes long.
        progress: Show a bar on stderr while avatars are drawn or images encoded.

    Raises:
        ConfigError: A setting is unknown, or does not fit the images or the tokenizer.
        DataError: The images cannot be used.
        CheckpointError: The tokenizer or ``init`` cannot be loaded.
    """
    check_trained(recipe)
    if recipe.stage == "tokenizer":
        return _tokenizer_task(recipe, log, progress)
    recipe = completed(recipe)
    return _generator_task(recipe, device, codes, log, progress)


def completed(recipe: Recipe) -> Recipe:
    """Return a generator's recipe with what it takes from ``init``: the tokenizer, and the size of the images.

    Raises:
        ConfigError: There is no ``init`` to take it from, or its codes are no square.
        CheckpointError: ``init`` or the tokenizer cannot be read.
    """
    task = from_mapping(GeneratorTaskConfig, recipe.task, where="recipe: task")
    task.check_start(recipe.init)
    tokenizer = task.tokenizer or str(recipe.init)
    data = recipe.data
    if data.size == 0 and not _is_codes(data):
        check(recipe.init is not None, "data.size = 0 is the size of the images of 'init', which is not set")
        tokens = AiM.from_pretrained(str(recipe.init), device="meta").config.num_tokens
        side = math.isqrt(tokens)
        check(side**2 == tokens, f"{recipe.init} has {tokens} codes, which are no square; set data.size")
        factor = VQModel.from_pretrained(tokenizer, device="meta").config.downsampling
        data = dataclasses.replace(data, size=side * factor)
    return dataclasses.replace(recipe, data=data, task={**recipe.task, "tokenizer": tokenizer})


def _is_codes(data: DataConfig) -> bool:
    return (expand_home(data.source) / "train" / META_FILE).is_file()


def _open(data: DataConfig, *, progress: bool) -> Splits:
    return open_splits(**data.images(), progress=progress)


def _tokenizer_task(recipe: Recipe, log: Callable[[str], None], progress: bool) -> TokenizerTask:
    initial = None if recipe.init is None else _finite(VQModel.from_pretrained(recipe.init), recipe.init)
    config = initial.config if initial else model_config(VQConfig, VQ_PRESETS, recipe.model)
    task = from_mapping(TokenizerTaskConfig, recipe.task, where="recipe: task")
    task.check_recipe(recipe, config.downsampling)
    for name in ("perceptual", "adversarial"):
        if getattr(task, f"{name}_weight") and (start := getattr(task, f"{name}_start")) >= recipe.fit.steps:
            log(f"note: the {name} loss never starts: task.{name}_start = {start}, fit.steps = {recipe.fit.steps}")
    if config.quantizer == "gumbel" and task.gumbel_until > recipe.fit.steps:
        lowest = task.temperature(recipe.fit.steps)
        log(
            f"note: the temperature ends at {lowest:.3g}, not at task.gumbel_last_temperature: task.gumbel_until = "
            f"{task.gumbel_until}, fit.steps = {recipe.fit.steps}"
        )
    train, held_out = _open(recipe.data, progress=progress)
    if initial is not None:
        model = initial
    else:
        model = VQModel(config)
        model.init_weights(seeded(recipe.fit.seed))
    seed, workers, trained = recipe.fit.seed, recipe.data.workers, initial is not None
    return TokenizerTask(model, train, held_out, task, seed=seed, workers=workers, trained=trained)


def _generator_task(
    recipe: Recipe, device: torch.device, codes: Path | None, log: Callable[[str], None], progress: bool
) -> GeneratorTask:
    task = from_mapping(GeneratorTaskConfig, recipe.task, where="recipe: task")
    check(
        recipe.data.crop == "center",
        "data.crop must be 'center' for a generator: its images are encoded once, before training",
    )
    for name in ("rear_weight", "random_order"):
        check(
            not getattr(task, name) or recipe.fit.compile is not True,
            f"task.{name} was not tried with fit.compile = true; set that to 'blocks' or false",
        )
    for note in task.unfinished(recipe.fit.steps):
        log(note)
    tokenizer = _finite(VQModel.from_pretrained(task.tokenizer, device=device), task.tokenizer)
    source = _code_source(recipe, tokenizer, codes, log, progress)
    fixed = {
        "vocab_size": tokenizer.config.codebook_size,
        "num_tokens": source.num_tokens,
        "num_classes": len(source.class_names),
        "tokenizer": tokenizer.code_fingerprint(),
    }
    read = partial(Reading, captioned=source.captioned, source=recipe.data.source)
    names, seed = source.class_names, recipe.fit.seed
    if recipe.init is None:
        config = _new_config(recipe, fixed)
        check_fits(task, config, tokenizer)
        reading = read(config.text, task.text_encoder)
        train, held_out = source.load()
        learned = reading.learn(train, log)
        model = AiM(dataclasses.replace(config, text=learned.text))
        model.init_weights(seeded(seed))
        return GeneratorTask(model, tokenizer.cpu(), train, held_out, names, task, *learned.readers, seed=seed)
    opened = open_checkpoint(recipe.init)
    given, model, table = _initial_generator(opened, task, fixed, names)
    check_fits(task, model.config, tokenizer)
    log(table.described)
    reads = model.config.text is not None
    text = model.config.text if reads else _new_text(recipe)
    reading = read(text, task.text_encoder, init=opened if reads else None)
    check(
        reads or text is None or "captions" in task.parts,
        "task.train leaves out 'captions', of which the model knows nothing yet; add it",
    )
    if task.objective != "likelihood":
        fresh = [name for name, row in zip(table.names, table.rows, strict=True) if row is None]
        new_captions = text is not None and not reads
        check_loop(task.objective, recipe.fit)
        check_known(task.objective, fresh_classes=fresh, fresh_captions=new_captions, init=opened.source)
    if task.objective == "cca":
        check_contrast(recipe.fit, None if reads else len(names))
    train, held_out = source.load()
    learned = reading.learn(train, log)
    if learned.text is not None and not reads:
        model = with_captions(model, learned.text, seed=seed)
    parts = choose_trained(model, task, seed=seed)
    adapter = Adapter.of(recipe.init, given.state_dict(), parts) if task.lora_rank else None
    if table.labels != tuple(range(len(names))):
        train, held_out = train.relabelled(table.labels), held_out.relabelled(table.labels)
    given_all = model, tokenizer.cpu(), train, held_out, table.names, task, *learned.readers
    return _TASKS[task.objective](*given_all, seed=seed, adapter=adapter)


def _finite(model: Model, source: str) -> Model:
    """Return ``model``, which was loaded from ``source``.

    Raises:
        CheckpointError: One of its weights is NaN or infinite; every step from there would be skipped.
    """
    if (bad := not_finite(model)) is not None:
        raise CheckpointError(
            f"{source}: its weights hold NaN or infinity (first in {bad}), so nothing can be trained with them; give "
            "another model"
        )
    return model


def _new_config(recipe: Recipe, fixed: Mapping[str, Any]) -> AiMConfig:
    """Return the shape of a new generator; images and tokenizer decide the settings in ``fixed``."""
    for name, value in fixed.items():
        check(
            recipe.model.get(name, value) == value,
            f"model.{name} is {value} for these images and this tokenizer, but the recipe says "
            f"{recipe.model.get(name)}; leave it out",
        )
    return model_config(AiMConfig, AIM_PRESETS, {**recipe.model, **fixed})


def _new_text(recipe: Recipe) -> TextConfig | None:
    """Return how a generator that starts from one without captions is to take them, if it is."""
    values = recipe.model.get("text")
    return None if values is None else from_mapping(TextConfig, values, where="recipe: model.text")


def _initial_generator(
    opened: Checkpoint, task: GeneratorTaskConfig, fixed: Mapping[str, Any], names: tuple[str, ...]
) -> tuple[AiM, AiM, ClassTable]:
    """Load the generator that training starts from; return it as it is, and with the classes that ``task`` asks for."""
    init = opened.source
    given = _finite(AiM.from_pretrained(opened), init)
    check_codes(init, given.config, fixed["vocab_size"], fixed["num_tokens"])
    known = given.config.tokenizer
    check(
        known in (None, fixed["tokenizer"]) or task.foreign_tokenizer,
        f"{init} was trained with the tokenizer {str(known)[:12]}, and {task.tokenizer} is {fixed['tokenizer'][:12]}: "
        "its codes would mean something else; give the right one, or set task.foreign_tokenizer = true",
    )
    table = initial_classes(opened, names, task.classes, given.config.num_classes)
    check(
        "classes" in task.parts or None not in table.rows,
        f"task.train leaves out 'classes', but {table.rows.count(None)} of them have no vector in {init} yet; add it",
    )
    # Official weights decode with positions shifted by one; training continues without the shift.
    new = {"num_classes": len(table.names), "tokenizer": fixed["tokenizer"], "decode_position_shift": 0}
    return given, with_classes(given, dataclasses.replace(given.config, **new), table.rows), table


def check_codes(init: str, config: AiMConfig, vocab_size: int, num_tokens: int) -> None:
    """Raise a ConfigError unless the shape of ``init`` fits a tokenizer's codes and the codes of an image."""
    for name, needed in (("vocab_size", vocab_size), ("num_tokens", num_tokens)):
        check(
            getattr(config, name) == needed,
            f"{init} has {name} {getattr(config, name)}, but these images and this tokenizer need {needed}; use the "
            "tokenizer and data.size that it was trained with",
        )


def initial_classes(opened: Checkpoint, names: tuple[str, ...], classes: Classes, rows: int) -> ClassTable:
    """Return the classes of a generator that starts from a checkpoint; see ``tuning.class_table``."""
    own = saved_class_names(opened, rows)
    return class_table(own, names, classes, rows=rows, init=opened.source)


class _CodeSource(NamedTuple):
    """Where a generator's codes come from.

    Attributes:
        class_names: Names of the labels.
        num_tokens: Codes of an image.
        captioned: Whether the images have captions.
        load: Return training and held-out codes; this may take long.
    """

    class_names: tuple[str, ...]
    num_tokens: int
    captioned: bool
    load: Callable[[], tuple[CodeSet, CodeSet]]


def _code_source(
    recipe: Recipe, tokenizer: VQModel, kept: Path | None, say: Callable[[str], None], progress: bool
) -> _CodeSource:
    """Find codes on disk (the recipe's own, or those that the run keeps in ``kept``), or images to encode."""
    if _is_codes(recipe.data):
        return _codes_on_disk(expand_home(recipe.data.source), tokenizer)
    recipe.data.check_size(tokenizer.config.downsampling)
    if kept is not None and holds_codes_of(kept, recipe.data):
        if note := changed_since(kept, recipe.data):
            say(note)
        return _codes_on_disk(kept, tokenizer)
    images = _open(recipe.data, progress=progress)

    def encode() -> tuple[CodeSet, CodeSet]:
        count = len(images.train) + len(images.held_out)
        say(f"encoding {count:,} images with {recipe.task['tokenizer']}")
        if kept is None:
            train = encode_images(tokenizer, images.train, views=recipe.data.views)
            return train, encode_images(tokenizer, images.held_out)
        draft = kept.with_name(f"{kept.name}.partial")
        described = describe(recipe.data)
        shutil.rmtree(draft, ignore_errors=True)
        encode_splits(
            tokenizer, images, draft, views=recipe.data.views, batch_size=64, progress=progress and sys.stderr.isatty()
        )
        write_description(draft, described)
        draft.rename(kept)
        return _codes_on_disk(kept, tokenizer).load()

    tokens = (recipe.data.size // tokenizer.config.downsampling) ** 2
    return _CodeSource(images.train.class_names, tokens, has_captions(images.train), encode)


def _codes_on_disk(folder: Path, tokenizer: VQModel) -> _CodeSource:
    codes = open_code_splits(folder, tokenizer)
    grid = codes.meta.grid
    captioned = codes.train.captions is not None
    return _CodeSource(codes.meta.class_names, grid[0] * grid[1], captioned, lambda: (codes.train, codes.held_out))


def model_config(cls: type[Config], presets: Mapping[str, Config], settings: Mapping[str, Any]) -> Config:
    """Build a config from the defaults, the preset if there is one, and ``settings``; the later one wins."""
    values = dict(settings)
    base: dict[str, Any] = {}
    if (preset := values.pop("preset", None)) is not None:
        if preset not in presets:
            near = suggest(str(preset), presets)
            raise ConfigError(f"recipe: unknown model.preset {preset!r}{near}; known presets: {', '.join(presets)}")
        base = to_mapping(presets[preset])
    return from_mapping(cls, {**base, **values}, where="recipe: model")
