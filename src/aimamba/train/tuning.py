"""Start a generator from the weights of another one: its classes, the parts that are trained, LoRA."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from aimamba.config import check
from aimamba.data.class_names import candidates
from aimamba.errors import ConfigError
from aimamba.models import AiM, AiMConfig, VQModel
from aimamba.models.lora import add_lora
from aimamba.models.text import TextConfig
from aimamba.seeds import seeded
from aimamba.train.generator_settings import Classes, GeneratorTaskConfig
from aimamba.train.parts import MODULES, Part, module_at
from aimamba.train.random_order import NextPlaces
from aimamba.train.rear import VectorHeads

_TABLE = "condition.table.weight"
_LISTED = 6  # names in a line


class ClassTable(NamedTuple):
    """The classes of a generator that starts from another one.

    Attributes:
        names: Name of each label.
        rows: The row of the old table that each label starts with; None starts with that of the null class.
        labels: The label of each class of the images.
        described: Where the rows come from, in a line.
    """

    names: tuple[str, ...]
    rows: tuple[int | None, ...]
    labels: tuple[int, ...]
    described: str


def class_table(own: Sequence[str], images: Sequence[str], classes: Classes, *, rows: int, init: str) -> ClassTable:
    """Decide which classes a generator has that starts from another one.

    Args:
        own: Names of the classes of the other one; empty if they are not known.
        images: Names of the classes of the images.
        classes: See ``GeneratorTaskConfig``.
        rows: Number of classes of the other one.
        init: Its name, for messages.

    Raises:
        ConfigError: A name could be several classes, or the other one has no names or another number of classes.
    """
    images, places = tuple(images), tuple(range(len(images)))
    if classes == "match" and not own:  # without names, the number is all there is to go by
        classes = "number" if len(images) == rows else "new"
    if classes == "number":
        check(
            len(images) == rows,
            f"task.classes = 'number' needs as many classes of images as {init} has, {rows:,}, got {len(images):,}; "
            "use 'match', 'extend' or 'new'",
        )
        return ClassTable(images, places, places, f"classes keep the rows of {init} by number")
    if classes == "new":
        return ClassTable(images, (None,) * len(images), places, "classes start from the null class")
    check(bool(own), f"task.classes = 'extend' adds to classes by name, and those of {init} have no names; use 'new'")
    found = [_found(name, tuple(own), init) for name in images]
    for row in {row for row in found if row is not None}:
        same = [name for name, its in zip(images, found, strict=True) if its == row]
        check(
            len(same) == 1,
            f"the classes {same[0]!r} and {same[-1]!r} of the images are both {own[row]!r} of {init}; put their images "
            "into one folder, or set task.classes = 'new'",
        )
    fresh = [name for name, row in zip(images, found, strict=True) if row is None]
    described = f"{len(images) - len(fresh)} of {len(images)} classes are known to {init} by name; " + (
        f"from the null class start {_listed(fresh)}" if fresh else "none starts anew"
    )
    if classes == "match":
        return ClassTable(images, tuple(found), places, described)
    added = iter(range(len(own), len(own) + len(fresh)))
    labels = tuple(next(added) if row is None else row for row in found)
    return ClassTable((*own, *fresh), (*range(len(own)), *(None for _ in fresh)), labels, described)


def _found(name: str, own: tuple[str, ...], init: str) -> int | None:
    """Return the class of the other model with this name, in any spelling, or None."""
    found = candidates(name, own)
    if len(found) > 1:
        raise ConfigError(
            f"the class {name!r} of the images could be {_listed([repr(own[row]) for row in found])} of {init}; write "
            "the exact name, or set task.classes = 'new'"
        )
    return found[0] if found else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f", ... ({len(names)} in all)" if len(names) > _LISTED else "")


@torch.no_grad()
def with_classes(given: AiM, config: AiMConfig, rows: Sequence[int | None]) -> AiM:
    """Return a generator with the weights of ``given`` and one row of the class table for each of ``rows``.

    Args:
        given: The other generator.
        config: Of the new one; its number of classes is that of ``rows``.
        rows: See ``ClassTable``.
    """
    tensors = given.state_dict()
    old = tensors[_TABLE]
    null = len(old) - 1
    tensors[_TABLE] = old[[*(null if row is None else row for row in rows), null]]
    with torch.device("meta"):
        model = AiM(config)
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return model.requires_grad_(True)


def with_captions(given: AiM, text: TextConfig, *, seed: int) -> AiM:
    """Return a generator with the weights of ``given`` that also takes captions, of which it knows nothing yet."""
    model = AiM(replace(given.config, text=text))
    model.init_weights(seeded(seed))
    model.load_state_dict(given.state_dict(), strict=False)  # all but the encoder of captions
    return model.requires_grad_(True)


def check_fits(task: GeneratorTaskConfig, config: AiMConfig, tokenizer: VQModel) -> None:
    """Refuse settings that do not fit a generator and its tokenizer, before images are encoded, which may take hours.

    Raises:
        ConfigError: One does not.
    """
    with torch.device("meta"):
        choose_trained(AiM(config), task)
    if task.rear_weight:
        VectorHeads.of(config, tokenizer, **task.rear_after)
    if task.random_order:
        NextPlaces.of(config)


def choose_trained(model: AiM, task: GeneratorTaskConfig, *, seed: int = 0) -> tuple[Part, ...]:
    """Freeze what ``task.train`` leaves out, and add LoRA where ``task.lora_rank`` says so; return the parts trained.

    Args:
        model: The generator, also on the meta device.
        task: The settings.
        seed: Of LoRA's matrices.

    Raises:
        ConfigError: ``peft`` is missing, or the settings of LoRA do not fit the generator.
    """
    parts = task.parts
    if task.lora_rank:
        add_lora(model, rank=task.lora_rank, alpha=task.alpha, layers=task.lora_layers, seed=seed)
    for part, modules in MODULES.items():
        for name in modules:
            if (module := module_at(model, name)) is None:
                continue
            inside = [layer for layer, _ in module.named_parameters() if ".lora_" in f".{layer}"]
            check(
                not inside or part not in parts,
                f"task.train trains {part!r} whole, and task.lora_layers adds LoRA in it; leave one of them out",
            )
            for layer, parameter in module.named_parameters():
                parameter.requires_grad_(part in parts or ".lora_" in f".{layer}")
    return parts
