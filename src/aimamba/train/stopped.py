"""The model of a run that was stopped: what its latest checkpoint holds, to look at before it is finished."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from aimamba.checkpoints.adapter import merge_layers
from aimamba.checkpoints.checkpoint import open_checkpoint
from aimamba.checkpoints.fill import fill
from aimamba.checkpoints.locate import find_part
from aimamba.config import from_mapping, to_mapping
from aimamba.data.caption_lines import CAPTIONS_FILE, CaptionLines
from aimamba.data.codes_meta import META_FILE, CodesMeta, read_meta
from aimamba.data.vocabulary import Vocabulary
from aimamba.documents import parse_toml
from aimamba.errors import CheckpointError
from aimamba.files import expand_home
from aimamba.models import AiM, AiMConfig, VQConfig, VQModel
from aimamba.models.text import TextConfig
from aimamba.pipeline.loading import saved_vocabulary
from aimamba.train.checkpoint import Checkpoint, newest_checkpoint
from aimamba.train.checkpoint_files import checkpoint_files
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.recipe import Recipe
from aimamba.train.stages import initial_classes, resolved


class StoppedRun(NamedTuple):
    """The latest state of a run.

    Attributes:
        model: The moving average of the weights if the run has one, else the weights; in evaluation mode.
        class_names: Names of a generator's classes.
        vocabulary: Of the captions that a generator takes.
        tokenizer: Where a generator's tokenizer is, as the recipe names it; None for a tokenizer.
        described: What the weights are, for a notice.
    """

    model: AiM | VQModel
    class_names: tuple[str, ...]
    vocabulary: Vocabulary | None
    tokenizer: str | None
    described: str


def is_stopped(source: str | Path) -> bool:
    """Return whether ``source`` is the folder of a run with a checkpoint and without a result."""
    folder = Path(source)
    if not checkpoint_files(folder):
        return False
    for part in (AiM.folder_in_pipeline, VQModel.folder_in_pipeline):
        try:
            find_part(folder, part)
        except CheckpointError:
            continue
        return False
    return True


def open_stopped(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> StoppedRun:
    """Load the weights in the latest checkpoint of a run that can be read.

    Args:
        folder: Folder of the run.
        device: Device of the weights.
        dtype: Dtype of the weights.

    Raises:
        CheckpointError: The checkpoint or the description of the codes is missing or damaged.
        ConfigError: This version cannot read the recipe in the checkpoint.
    """
    found = newest_checkpoint(folder)
    if found is None:
        raise CheckpointError(f"{folder}: holds no checkpoint; continue the training")
    saved, path = found
    where = f"{path}: recipe"
    recipe = from_mapping(Recipe, parse_toml(saved.recipe), where=where)
    settings = resolved(to_mapping(recipe))["model"]
    task = GeneratorTaskConfig()
    model: AiM | VQModel
    names: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    with torch.device("meta"):
        if recipe.stage == "tokenizer":
            base = to_mapping(VQModel.from_pretrained(recipe.init, device="meta").config) if recipe.init else settings
            model = VQModel(from_mapping(VQConfig, base, where=where))
        else:
            task = from_mapping(GeneratorTaskConfig, recipe.task, where=f"{where}: task")
            place, meta = _codes(folder, recipe)
            base, names = settings, meta.class_names
            if recipe.init is not None:
                opened = open_checkpoint(recipe.init)
                base = to_mapping(AiM.from_pretrained(opened, device="meta").config)
                names = initial_classes(opened, names, task.classes, base["num_classes"]).names
            fixed = {
                "vocab_size": meta.codebook_size,
                "num_tokens": meta.grid[0] * meta.grid[1],
                "num_classes": len(names),
                "tokenizer": saved.basis.get("tokenizer", meta.tokenizer),
                "decode_position_shift": 0,
            }
            config = from_mapping(AiMConfig, {**settings, **base, **fixed}, where=where)
            if config.text is not None:
                known = recipe.init is not None and "text" in base
                vocabulary = (
                    saved_vocabulary(open_checkpoint(str(recipe.init))) if known else _learned(place, config.text)
                )
                config = replace(config, text=replace(config.text, vocabulary=len(vocabulary)))
            model = AiM(config)
    tensors, averaged = _weights(saved, path)
    if task.lora_rank:
        tensors = merge_layers(tensors, task.alpha / task.lora_rank)
    fill(model, tensors, where=str(path))
    model = model.requires_grad_(False).cast(dtype).to(device).eval()
    kind = "the averaged weights" if averaged else "the weights"
    return StoppedRun(
        model,
        names,
        vocabulary,
        recipe.task.get("tokenizer") or recipe.init,
        f"{kind} after step {saved.step} of {recipe.fit.steps}",
    )


def _weights(saved: Checkpoint, path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Return the tensors of the model that a finished run would save, and whether they are averaged."""
    averaged = "average" in saved.parts
    tensors = saved.parts["average"].get("model") if averaged else saved.parts.get("model")
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path}: holds no weights of a model; continue the training")
    return dict(tensors), averaged


def _learned(codes: Path, text: TextConfig) -> Vocabulary:
    """Learn the vocabulary of a run again from its captions, which gives the same one."""
    captions = CaptionLines.open(codes / CAPTIONS_FILE)
    return Vocabulary.train((one for index in range(len(captions)) for one in captions[index]), text.vocabulary)


def _codes(folder: Path, recipe: Recipe) -> tuple[Path, CodesMeta]:
    """Return place and description of the codes that a generator is trained on: the run's own, or those given."""
    for place in (folder / "codes" / "train", expand_home(recipe.data.source) / "train"):
        if (meta := read_meta(place)) is not None:
            return place, meta
    raise CheckpointError(
        f"{folder}: the run is not finished, and there is no {META_FILE} of the codes it was trained on in "
        f"{folder / 'codes' / 'train'}; continue the training"
    )
