"""LoRA (Hu et al., arXiv 2106.09685) for the linear layers of a generator, by ``peft``.

Training wraps layers of an ``AiM`` in those of ``peft``: beside the frozen weight W (out, in) each has A (r, in) and B
(out, r), and computes ``W x + alpha / r * B A x``. B begins as zero, so the first step is that of the model without
them. Decoding reads weights and calls no layers; ``merged`` returns a model for it, with ``W + alpha / r * B A``.
"""

import importlib.util
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from aimamba.checkpoints.adapter import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    DIGEST,
    PREFIX,
    merge_layers,
)
from aimamba.checkpoints.fill import fill
from aimamba.config import check
from aimamba.errors import suggest
from aimamba.files import write_atomically
from aimamba.models.aim import AiM
from aimamba.models.aim_config import AiMConfig

_NAME = "default"  # peft's name of the only adapter


def add_lora(model: AiM, *, rank: int, alpha: float, layers: Sequence[str], seed: int = 0) -> None:
    """Freeze ``model`` and add trained low-rank matrices to some of its linear layers, in place.

    Args:
        model: The generator, also on the meta device.
        rank: Rank r of the matrices.
        alpha: Their product counts ``alpha / rank``.
        layers: Last names of the layers, such as ``in_proj``.
        seed: Seed of A.

    Raises:
        ConfigError: ``peft`` is not installed, the generator has no such layer, or the rank is above a layer's width.
    """
    peft = _peft()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = sorted({name.rpartition(".")[2] for name in linear if not name.rpartition(".")[2].isdigit()})
    for layer in layers:
        check(
            layer in known,
            f"task.lora_layers: this generator has no linear layer {layer!r}{suggest(layer, known)}; it has "
            f"{', '.join(known)}",
        )
    chosen = {name: module for name, module in linear.items() if name.rpartition(".")[2] in layers}
    for name, module in chosen.items():
        most = min(module.in_features, module.out_features)
        check(rank <= most, f"task.lora_rank must be at most {most}, the width of {name}, got {rank}")
    on_meta = model.word_embedding.weight.is_meta
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(layers), init_lora_weights=not on_meta, bias="none"
    )
    with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
        torch.manual_seed(seed)  # peft draws from torch's global generator
        peft.inject_adapter_in_model(config, model)


def is_adapted(model: nn.Module) -> bool:
    """Return whether ``add_lora`` has changed the layers of ``model``."""
    return hasattr(model, "peft_config")


def merged(model: AiM) -> AiM:
    """Return the generator in evaluation mode with its low-rank matrices added to its weights.

    Without such matrices it is ``model`` itself; otherwise a new one, which shares all other weights.
    """
    if not is_adapted(model):
        return model
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        plain = AiM(model.config)
    fill(plain, merge_layers(tensors, _scale(model)), where="LoRA")
    return plain.requires_grad_(False).eval()


def save_adapter(
    model: AiM,
    folder: Path,
    *,
    config: AiMConfig | None = None,
    base: str,
    digest: str,
    parts: Mapping[str, Iterable[str]],
) -> None:
    """Write what differs from the frozen weights: ``adapter_model.safetensors`` beside its config and the model's.

    ``peft`` reads them for an ``AiM`` of the shape in ``config.json``; ``AiM.from_pretrained`` reads them together
    with ``config.json`` and the frozen weights.

    Args:
        model: After ``add_lora``.
        folder: The folder; made if needed.
        config: Written in place of the model's own config.
        base: The model with the frozen weights: a path, a packaged name or a hub id.
        digest: Its ``base_digest``.
        parts: Modules that are saved whole, by name, with the names of their parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    peft = _peft()
    whole = [name for names in parts.values() for name in names]
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    matrices = peft.get_peft_model_state_dict(model, state, save_embedding_layers=False)
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in {**matrices, **{n: state[n] for n in whole}}.items()}
    metadata = {"format": "pt", DIGEST: digest}
    write_atomically(folder / ADAPTER_FILE, lambda path: save_file(tensors, path, metadata=metadata))
    settings: Any = model.peft_config[_NAME]  # type: ignore[index]
    values = {key: sorted(v) if isinstance(v, set) else v for key, v in settings.to_dict().items()}
    changed = {"base_model_name_or_path": base, "modules_to_save": sorted(parts), "inference_mode": True}
    text = json.dumps({**values, **changed}, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / ADAPTER_CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    model.save_config(folder, ADAPTER_FILE, config)


def _scale(model: nn.Module) -> float:
    config: Any = model.peft_config[_NAME]  # type: ignore[index]
    return float(config.lora_alpha / config.r)


def _peft() -> ModuleType:
    """Import ``peft``.

    Raises:
        ConfigError: It is not installed.
    """
    check(
        importlib.util.find_spec("peft") is not None,
        "task.lora_rank: training with LoRA needs peft; install it with pip install 'aimamba[lora]'",
    )
    with warnings.catch_warnings(action="ignore"):  # of packages that it imports
        import peft  # noqa: PLC0415 - takes seconds
    return peft
