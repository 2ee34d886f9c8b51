"""What ``--classes`` and ``--prompt`` name."""

from typing import TYPE_CHECKING

from aimamba.errors import ConfigError

if TYPE_CHECKING:
    from aimamba.pipeline import Pipeline, Prompt

_CLASSES_BY_DEFAULT = 10
_ALL = "all"


def chosen(classes: str | None, prompts: list[str] | None, pipeline: "Pipeline") -> "list[int | Prompt]":
    """Return the classes or prompts to draw: with both, every prompt in every class.

    Raises:
        ConfigError: See ``chosen_classes``; or the model takes no prompts, or is given the same one twice.
    """
    from aimamba.pipeline import Prompt

    if prompts is None:
        return list(chosen_classes(classes, pipeline))
    if pipeline.generator.config.text is None:
        raise ConfigError(
            "--prompt is for models that are trained on captions, and this one takes classes: give --classes, or "
            "another --model"
        )
    if len(set(prompts)) < len(prompts):
        raise ConfigError("--prompt names the same text twice; -n gives several images of one")
    beside = [None] if classes is None else chosen_classes(classes, pipeline)
    return [Prompt(text, label) for text in prompts for label in beside]


def chosen_classes(text: str | None, pipeline: "Pipeline") -> list[int]:
    """Return the labels of the classes that ``--classes`` names, each once; without it those of the first ten.

    Raises:
        ConfigError: A class is unknown or could be several, or no class is named.
    """
    from aimamba.data.class_names import candidates, find_classes

    count = pipeline.generator.config.num_classes
    if text == _ALL and not candidates(_ALL, pipeline.class_names):
        return list(range(count))
    if text is None:
        return list(range(min(_CLASSES_BY_DEFAULT, count)))
    labels = find_classes(text, pipeline.class_names, count)
    if not labels:
        raise ConfigError(f"--classes names no class, got {text!r}; expected names or numbers separated by commas")
    return labels
