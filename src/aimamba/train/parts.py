"""The parts of a generator that may be trained, and how one with LoRA is saved: without its frozen weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from aimamba.checkpoints.adapter import base_digest
from aimamba.models import AiM, AiMConfig
from aimamba.models.lora import save_adapter

Part = Literal["classes", "captions", "embeddings", "adaln", "blocks"]

MODULES: dict[Part, tuple[str, ...]] = {
    "classes": ("condition.table",),
    "captions": ("condition.text",),
    "embeddings": ("word_embedding", "position_embedding"),
    "adaln": ("adaln", "final_adaln"),
    "blocks": ("blocks", "norm", "final_norm"),
}
"""The modules of each part that ``task.train`` names."""


def module_at(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module of this dotted name, or None if the generator has none there."""
    found: Any = model
    for step in name.split("."):
        found = getattr(found, step, None)
    return found if isinstance(found, nn.Module) else None


@dataclass(frozen=True)
class Adapter:
    """How a run with LoRA is saved: without the frozen weights.

    Attributes:
        base: The model that has them: an absolute path, a packaged name or a hub id.
        digest: Of its weights.
        parts: The parts of ``MODULES`` that are trained whole.
    """

    base: str
    digest: str
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, init: str, tensors: dict[str, Tensor], parts: tuple[Part, ...]) -> "Adapter":
        """Describe the adapter of a run that starts from ``init``."""
        base = str(Path(init).resolve()) if Path(init).exists() else init
        return cls(base, base_digest(tensors), parts)

    def saver(self, model: AiM) -> Callable[[Path, AiMConfig], None]:
        """Return what saves ``model`` into a folder, with a config."""
        saved = [name for part, names in MODULES.items() if part in ("classes", *self.parts) for name in names]
        modules = {name: module for name in saved if (module := module_at(model, name)) is not None}
        parts = {name: [f"{name}.{one}" for one, _ in module.named_parameters()] for name, module in modules.items()}
        parts = {name: names for name, names in parts.items() if names}

        def save(folder: Path, config: AiMConfig) -> None:
            save_adapter(model, folder, config=config, base=self.base, digest=self.digest, parts=parts)

        return save
