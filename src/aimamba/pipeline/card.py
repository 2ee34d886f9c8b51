"""The page that a model shows on the hub: what it is, how to load it, how good it is, what it looks like."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCardData
from PIL import Image

from aimamba.config import check
from aimamba.data.sheets import sheet
from aimamba.errors import counted
from aimamba.files import write_atomically
from aimamba.models import AiM, VQModel

CARD_FILE, SHEET_FILE = "README.md", "samples.png"

_MARK = "<!-- written by aimamba; remove this line to keep your changes -->"
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_MOST_NAMES, _SHOWN_CLASSES = 100, 8
_TAGS = ("image-generation", "class-conditional", "autoregressive", "mamba", "state-space-model", "arxiv:2408.12245")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What only the author knows of a model.

    Attributes:
        name: Its name on the page and in the example; by default that of its folder or repository.
        license: The weights' license by its SPDX or hub identifier, such as ``mit`` or ``cc0-1.0``.
        description: A text about the model, in Markdown.
        metrics: Figures by name; each should say how it was measured.
        base_model: Hub id of the model that it was fine-tuned from.
        samples: Images of each of up to eight classes, or of each prompt, which are generated for the page; 0 for none.
        prompts: Sentences that are drawn in place of classes, if the generator takes captions.

    Raises:
        ConfigError: ``license`` is no identifier, or ``samples`` is negative.
    """

    name: str | None = None
    license: str | None = None
    description: str = ""
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    base_model: str | None = None
    samples: int = 0
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(
            self.license is None or _LICENSE.fullmatch(self.license) is not None,
            f"license must be an identifier such as mit or apache-2.0, got {self.license!r}",
        )
        check(self.samples >= 0, f"samples must be 0 or more, got {self.samples}")
        check(not isinstance(self.prompts, str), f"prompts must be a tuple of texts, got {self.prompts!r:.80}")


def write_card(
    folder: Path,
    card: ModelCard,
    *,
    generator: AiM,
    tokenizer: VQModel,
    class_names: Sequence[str],
    rows: Sequence[Sequence[Image.Image]] = (),
) -> None:
    """Write ``README.md``, and ``samples.png`` if there are samples, into the folder of a saved pipeline.

    A ``README.md`` that somebody else has written, or changed and unmarked, stays.

    Args:
        folder: The folder.
        card: What the author says.
        generator: The generator.
        tokenizer: The tokenizer.
        class_names: Names of the classes, or none.
        rows: Samples of the first classes, one row for each.
    """
    path = folder / CARD_FILE
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    if rows:
        names = card.prompts or class_names[: len(rows)] or [f"class {label}" for label in range(len(rows))]
        image = sheet(rows, row_names=names)
        write_atomically(folder / SHEET_FILE, lambda path: image.save(path, format="PNG"))
    text = card_text(card, card.name or folder.name, generator, tokenizer, class_names, with_samples=bool(rows))
    write_atomically(path, lambda path: path.write_text(text, encoding="utf-8"))


def shown_classes(classes: int) -> list[int]:
    """Return the classes whose samples the page shows."""
    return list(range(min(classes, _SHOWN_CLASSES)))


def card_text(
    card: ModelCard, name: str, generator: AiM, tokenizer: VQModel, class_names: Sequence[str], *, with_samples: bool
) -> str:
    """Return the page as Markdown, with a head for the hub."""
    shape = generator.config
    side = round(shape.num_tokens**0.5)
    size = side * tokenizer.config.downsampling
    head = ModelCardData(
        license=card.license,
        library_name="aimamba",
        pipeline_tag="unconditional-image-generation" if shape.text is None else "text-to-image",
        base_model=card.base_model,
        tags=list(_TAGS),
    ).to_yaml()
    classes = counted(shape.num_classes, "class")
    if class_names:
        listed = ", ".join(f"`{' '.join(each.replace('`', ' ').split())}`" for each in class_names[:_MOST_NAMES])
        classes += f": {listed}{', ...' if len(class_names) > _MOST_NAMES else ''}"
    if shape.text is not None:
        classes += f", and captions of up to {shape.text.tokens} tokens"
    asked = f"[{class_names[0] if class_names else 0!r}]"
    if shape.text is not None:
        asked = f"prompts=[{card.prompts[0] if card.prompts else 'a sentence'!r}]"
    parts = [
        f"---\n{head}\n---",
        _MARK,
        f"# {name}",
        *([card.description.strip()] if card.description.strip() else []),
        f"An [AiM](https://arxiv.org/abs/2408.12245): images of {size} x {size} pixels, generated as {side} x {side} "
        f"codes by a Mamba-2 model of {generator.num_parameters():,} parameters and decoded by a tokenizer of "
        f"{tokenizer.num_parameters():,}. It knows {classes}.",
        *([f"![Samples]({SHEET_FILE})"] if with_samples else []),
        "## Use",
        f"```python\nfrom aimamba import Pipeline\n\npipeline = Pipeline.from_pretrained({name!r})\n"
        f"images = pipeline({asked}, n=4, config={{'cfg_scale': 1.5}})\n```",
    ]
    if card.metrics:
        rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in card.metrics.items())
        parts += ["## Figures", f"| measured | value |\n|---|---|\n{rows}"]
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(shown.replace("|", "\\|").split())
