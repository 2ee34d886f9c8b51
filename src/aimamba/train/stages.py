"""From a recipe to a task: open the images, build the model, load what the stage stands on."""

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from aimamba.config import check, from_mapping, to_mapping
from aimamba.data.codes import CodeSet, encode_images
from aimamba.data.sets import Splits, open_splits
from aimamba.data.shards import META_FILE, encode_splits, open_code_splits
from aimamba.errors import CheckpointError, ConfigError, suggest
from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiM, AiMConfig, VQConfig, VQModel
from aimamba.train.generator import GeneratorTask, GeneratorTaskConfig
from aimamba.train.recipe import DataConfig, Recipe, recipe_names
from aimamba.train.task import Task
from aimamba.train.tokenizer import TokenizerTask, TokenizerTaskConfig
from aimamba.train.toml import read_toml, to_toml

_FROM_CODES = ("vocab_size", "num_tokens", "num_classes")  # of a generator
_NOTE = "data.toml"  # beside codes that a run has kept: of which images they are

Config = TypeVar("Config", AiMConfig, VQConfig)


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give all settings of the recipe ``values``, also those that it leaves to a preset or a default.

    What decides nothing is left out: with ``init`` the shape of the model, and of a generator's shape what follows from
    its codes.

    Raises:
        ConfigError: A setting is unknown or does not fit.
    """
    recipe = from_mapping(Recipe, values, where="recipe")
    task: TokenizerTaskConfig | GeneratorTaskConfig
    shape: VQConfig | AiMConfig
    if recipe.stage == "tokenizer":
        task = from_mapping(TokenizerTaskConfig, recipe.task, where="recipe: task")
        shape = _model_config(VQConfig, VQ_PRESETS, {} if recipe.init else recipe.model)
    else:
        task = from_mapping(GeneratorTaskConfig, recipe.task, where="recipe: task")
        shape = _model_config(AiMConfig, AIM_PRESETS, {} if recipe.init else recipe.model)
    settings = {name: value for name, value in to_mapping(shape).items() if name not in _FROM_CODES}
    return {**to_mapping(recipe), "model": {} if recipe.init else settings, "task": to_mapping(task)}


def make_task(
    recipe: Recipe,
    *,
    device: torch.device,
    codes: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Task[Any, Any]:
    """Prepare the stage that ``recipe`` describes.

    Args:
        recipe: The resolved recipe.
        device: Where to encode images, for a generator.
        codes: Folder in which a generator's images are kept as codes once they are encoded; None keeps them in
            memory.
        say: Told what takes its time.

    Raises:
        ConfigError: A setting is unknown, or does not fit the images or the tokenizer.
        DataError: The images cannot be used.
        CheckpointError: The tokenizer cannot be loaded.
    """
    if recipe.stage == "tokenizer":
        return _tokenizer_task(recipe)
    return _generator_task(recipe, device, codes, say)


def _open(data: DataConfig) -> Splits:
    return open_splits(**dataclasses.asdict(data), progress=True)


def _tokenizer_task(recipe: Recipe) -> TokenizerTask:
    check(
        not recipe.fit.compile, "fit.compile is for generators: a tokenizer's time goes into convolutions; leave it out"
    )
    given = VQModel.from_pretrained(recipe.init) if recipe.init else None
    config = given.config if given else _model_config(VQConfig, VQ_PRESETS, recipe.model)
    task = from_mapping(TokenizerTaskConfig, recipe.task, where="recipe: task")
    check(
        given is not None or not task.decoder_only,
        "task.decoder_only keeps the codes of a trained tokenizer, so it needs one: name it in 'init' or with --init",
    )
    _check_size(recipe, config)
    train, held_out = _open(recipe.data)
    if given is not None:
        return TokenizerTask(given, train, held_out, task, seed=recipe.fit.seed)
    model = VQModel(config)
    model.init_weights(torch.Generator().manual_seed(recipe.fit.seed))
    return TokenizerTask(model, train, held_out, task, seed=recipe.fit.seed)


def _generator_task(
    recipe: Recipe, device: torch.device, codes: Path | None, say: Callable[[str], None]
) -> GeneratorTask:
    task = from_mapping(GeneratorTaskConfig, recipe.task, where="recipe: task")
    check(
        recipe.data.crop == "center",
        "data.crop must be 'center' for a generator: its images are encoded once, before training",
    )
    recipe_of_tokenizer = Path(task.tokenizer).name
    if not Path(task.tokenizer).exists() and recipe_of_tokenizer in recipe_names():
        raise CheckpointError(
            f"the tokenizer {task.tokenizer} is not there yet: train it first "
            f"('aimamba train {recipe_of_tokenizer}'), or give another with --tokenizer"
        )
    tokenizer = VQModel.from_pretrained(task.tokenizer, device=device)
    source = _code_source(recipe, tokenizer, codes, say)
    fixed = {
        "vocab_size": tokenizer.config.codebook_size,
        "num_tokens": source.num_tokens,
        "num_classes": len(source.class_names),
    }
    model = _given_generator(recipe, recipe.init, fixed) if recipe.init else _new_generator(recipe, fixed)
    train, held_out = source.load()
    return GeneratorTask(model, tokenizer.cpu(), train, held_out, source.class_names, task, seed=recipe.fit.seed)


def _new_generator(recipe: Recipe, fixed: Mapping[str, int]) -> AiM:
    """A generator of the recipe's shape with fresh weights; ``fixed`` follows from images and tokenizer."""
    for name, value in fixed.items():
        check(
            recipe.model.get(name, value) == value,
            f"model.{name} is {value} for these images and this tokenizer, but the recipe says "
            f"{recipe.model.get(name)}; leave it out",
        )
    model = AiM(_model_config(AiMConfig, AIM_PRESETS, {**recipe.model, **fixed}))
    model.init_weights(torch.Generator().manual_seed(recipe.fit.seed))
    return model


def _given_generator(recipe: Recipe, init: str, fixed: Mapping[str, int]) -> AiM:
    """Load ``init``, and give it a fresh class table where the number of classes is another."""
    given = AiM.from_pretrained(init)
    for name in ("vocab_size", "num_tokens"):
        check(
            getattr(given.config, name) == fixed[name],
            f"{init} has {name} {getattr(given.config, name)}, but these images and this tokenizer need "
            f"{fixed[name]}; give its own tokenizer and size",
        )
    # Trained on, official weights are decoded as they are trained: without the shift.
    model = AiM(dataclasses.replace(given.config, num_classes=fixed["num_classes"], decode_position_shift=0))
    model.init_weights(torch.Generator().manual_seed(recipe.fit.seed))
    tensors = given.state_dict()
    if fixed["num_classes"] != given.config.num_classes:
        table = model.condition.table.weight.detach().clone()
        table[-1] = tensors["condition.table.weight"][-1]  # "no class" means the same
        tensors["condition.table.weight"] = table
    model.load_state_dict(tensors)
    return model


class _CodeSource(NamedTuple):
    """Where a generator's codes come from.

    Attributes:
        class_names: Names of the labels.
        num_tokens: Codes of an image.
        load: Return training and held-out codes; this may take long.
    """

    class_names: tuple[str, ...]
    num_tokens: int
    load: Callable[[], tuple[CodeSet, CodeSet]]


def _code_source(recipe: Recipe, tokenizer: VQModel, kept: Path | None, say: Callable[[str], None]) -> _CodeSource:
    """Find codes on disk (the recipe's own, or those that the run keeps in ``kept``), or images to encode."""
    given = Path(recipe.data.source).expanduser()
    if (given / "train" / META_FILE).is_file():
        return _codes_on_disk(given, tokenizer)
    _check_size(recipe, tokenizer.config)
    if kept is not None and _has_kept(kept, recipe.data):
        return _codes_on_disk(kept, tokenizer)
    images = _open(recipe.data)

    def encode() -> tuple[CodeSet, CodeSet]:
        count = len(images.train) + len(images.held_out)
        say(f"encoding {count:,} images with {recipe.task['tokenizer']}")
        if kept is None:
            train = encode_images(tokenizer, images.train, flip=recipe.data.flip)
            return train, encode_images(tokenizer, images.held_out)
        draft = kept.with_name(f"{kept.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        views = "center-flip" if recipe.data.flip else "center"
        encode_splits(tokenizer, images, draft, views=views, batch_size=64, progress=sys.stderr.isatty())
        (draft / _NOTE).write_text(to_toml(to_mapping(recipe.data)), encoding="utf-8")
        draft.rename(kept)
        return _codes_on_disk(kept, tokenizer).load()

    tokens = (recipe.data.size // tokenizer.config.downsampling) ** 2
    return _CodeSource(images.train.class_names, tokens, encode)


def _codes_on_disk(folder: Path, tokenizer: VQModel) -> _CodeSource:
    codes = open_code_splits(folder, tokenizer)
    grid = codes.meta.grid
    return _CodeSource(codes.meta.class_names, grid[0] * grid[1], lambda: (codes.train, codes.held_out))


def _has_kept(folder: Path, data: DataConfig) -> bool:
    """Return whether a run has kept the codes of these images in ``folder``."""
    if not folder.exists():
        return False
    note = folder / _NOTE
    check(note.exists(), f"{folder} was not made by a training run and would be replaced; give another --out")
    same = from_mapping(DataConfig, read_toml(note), where=str(note)) == data
    check(same, f"{folder} holds the codes of other images; remove it, or give another --out")
    return True


def _check_size(recipe: Recipe, tokenizer: VQConfig) -> None:
    factor = tokenizer.downsampling
    check(
        recipe.data.size % factor == 0,
        f"data.size must be a multiple of the tokenizer's down-sampling {factor}, got {recipe.data.size}",
    )


def _model_config(cls: type[Config], presets: Mapping[str, Config], settings: Mapping[str, Any]) -> Config:
    """Settings over a preset, where one is named, over the defaults."""
    values = dict(settings)
    base: dict[str, Any] = {}
    if (preset := values.pop("preset", None)) is not None:
        if preset not in presets:
            near = suggest(str(preset), presets)
            raise ConfigError(f"recipe: unknown model.preset {preset!r}{near}; known presets: {', '.join(presets)}")
        base = to_mapping(presets[preset])
    return from_mapping(cls, {**base, **values}, where="recipe: model")
