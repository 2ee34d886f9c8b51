"""The parts of a pipeline from and to files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from aimamba.checkpoints.checkpoint import Checkpoint, open_checkpoint
from aimamba.checkpoints.hub import Hub
from aimamba.checkpoints.locate import CONFIG_FILE, PIPELINE_FILE, VOCABULARY_FILE
from aimamba.checkpoints.sums import SUMS_KEY, sum_of_file, sum_of_values
from aimamba.data.imagenet import IMAGENET_CLASSES, imagenet_class_names
from aimamba.data.vocabulary import Vocabulary
from aimamba.devices import resolve_device
from aimamba.errors import CheckpointError, ConfigError
from aimamba.files import write_atomically
from aimamba.models import AiM, AiMConfig, VQModel
from aimamba.models.pretrained import one_dtype


def load_parts(
    source: str | Path | Checkpoint,
    *,
    tokenizer: str | Path | Checkpoint | None,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
    verify: bool | None,
    hub: Hub,
) -> tuple[VQModel, AiM, tuple[str, ...], Vocabulary | None]:
    """Load tokenizer, generator, class names and vocabulary, see ``Pipeline.from_pretrained``."""
    device = as_device(device)
    checkpoint = open_checkpoint(source, hub=hub)
    generator = AiM.from_pretrained(checkpoint, device=device, dtype=dtype, verify=verify)
    names = saved_class_names(checkpoint, generator.config.num_classes)
    try:
        place = _with_tokenizer(checkpoint) if tokenizer is None else open_checkpoint(tokenizer, hub=hub.elsewhere())
        vq = VQModel.from_pretrained(place, device=device, dtype=dtype, verify=verify)
    except CheckpointError as error:
        if tokenizer is not None:
            raise
        raise CheckpointError(f"{error}; give the tokenizer's place beside the generator's") from error
    text = generator.config.text
    vocabulary = None if text is None or text.features else saved_vocabulary(checkpoint)
    return vq, generator, names, vocabulary


SaveGenerator = Callable[[Path, AiMConfig], None]
"""Write a generator into a folder, with a config in place of its own."""


def save_parts(
    folder: Path,
    tokenizer: VQModel,
    generator: AiM,
    class_names: Sequence[str],
    vocabulary: Vocabulary | None = None,
    dtype: str | torch.dtype | None = None,
    save_generator: SaveGenerator | None = None,
) -> None:
    """Write the parts, ``vocabulary.json`` and ``pipeline.json`` into ``folder``, see ``Pipeline.save_pretrained``."""
    if dtype is not None:
        tokenizer = tokenizer.in_dtype(one_dtype(dtype))
    tokenizer.save_pretrained(folder / VQModel.folder_in_pipeline, dtype=dtype)
    config = generator.config
    if config.tokenizer is None:
        config = replace(config, tokenizer=tokenizer.code_fingerprint())
    if save_generator is None:
        generator.save_pretrained(folder / AiM.folder_in_pipeline, config=config, dtype=dtype)
    else:
        save_generator(folder / AiM.folder_in_pipeline, config)
    values = {"class_names": list(class_names)}
    configs = [f"{part}/{CONFIG_FILE}" for part in (VQModel.folder_in_pipeline, AiM.folder_in_pipeline)]
    if vocabulary is not None:
        vocabulary.save(folder / VOCABULARY_FILE)
        configs.append(VOCABULARY_FILE)
    sums = {PIPELINE_FILE: sum_of_values(values), **{name: sum_of_file(folder / name) for name in configs}}
    content = json.dumps({**values, SUMS_KEY: sums}, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / PIPELINE_FILE, lambda path: path.write_text(content, encoding="utf-8"))


def open_tokenizer(
    source: str | Path | Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    foreign: bool = False,
) -> VQModel:
    """Load the tokenizer of a model; beside a generator, it must be the one that the generator was trained with.

    Args:
        source: A tokenizer, or what ``Pipeline.from_pretrained`` takes.
        device: Device of the weights.
        dtype: Dtype of the weights.
        foreign: Accept a tokenizer that stands beside a generator of another one.

    Raises:
        CheckpointError: It is missing or damaged.
        ConfigError: It stands beside a generator that was trained on the codes of another tokenizer.
    """
    checkpoint = open_checkpoint(source)
    tokenizer = VQModel.from_pretrained(checkpoint, device=device, dtype=dtype)
    if not foreign and "generator" in checkpoint.parts:
        check_tokenizer(AiM.from_pretrained(checkpoint, device="meta").config, tokenizer)
    return tokenizer


def check_tokenizer(config: AiMConfig, tokenizer: VQModel) -> None:
    """Check that a tokenizer is the one that the generator's config names; one on the meta device has no weights."""
    if config.tokenizer is None or tokenizer.device.type == "meta":
        return
    if (given := tokenizer.code_fingerprint()) != config.tokenizer:
        raise ConfigError(
            f"the generator was trained with the tokenizer {config.tokenizer[:12]}, and the one given is {given[:12]}: "
            "it would decode noise; give the right one, or accept it with --foreign-tokenizer (foreign_tokenizer=True)"
        )


def check_vocabulary(config: AiMConfig, vocabulary: Vocabulary | None) -> None:
    """Check that a vocabulary is that of a generator.

    Raises:
        ConfigError: It has another number of tokens, or the generator takes none.
    """
    if vocabulary is None:
        return
    expected, given = 0 if config.text is None else config.text.vocabulary, len(vocabulary)
    if given == expected:
        return
    takes = f"a vocabulary of {expected} tokens" if expected else "no vocabulary"
    raise ConfigError(f"the generator takes {takes}, and the one given has {given}; give the one it was trained with")


def as_device(name: str | torch.device) -> torch.device:
    """Return a device of this machine, or ``meta``; ``auto`` is the fastest one.

    Raises:
        ConfigError: There is no such device; the message lists those of this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        return resolve_device(str(name))
    return resolve_device(str(device)) if device.type in ("cuda", "mps") else device


def saved_class_names(checkpoint: Checkpoint, num_classes: int) -> tuple[str, ...]:
    """Return the class names of a checkpoint; ImageNet's for one of 1,000 classes without names."""
    names = checkpoint.class_names()
    if names is None:
        return imagenet_class_names() if num_classes == IMAGENET_CLASSES else ()
    return names


def saved_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Return the vocabulary of a checkpoint whose generator takes captions.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    return Vocabulary.load(checkpoint.vocabulary())


def _with_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint itself, or the saved pipeline around it if it is the generator's folder in one."""
    folder = checkpoint.place(AiM.folder_in_pipeline)
    is_inside = folder == checkpoint.path and folder.name == AiM.folder_in_pipeline
    if is_inside and (folder.parent / VQModel.folder_in_pipeline).is_dir():
        return open_checkpoint(folder.parent)
    return checkpoint
