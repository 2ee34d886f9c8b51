"""LoRA adapters in the format of ``peft``: read together with the model that they change, into one state dict.

A folder holds ``config.json`` (the shape of the generator), ``adapter_config.json`` and ``adapter_model.safetensors``.
The frozen weights are in the base model that ``adapter_config.json`` names. ``peft`` itself is not needed.

Shape letters: r rank, (out, in) a linear layer's weight.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from aimamba.checkpoints.fingerprint import fingerprint
from aimamba.checkpoints.weights import WeightsFile
from aimamba.documents import read_json
from aimamba.errors import CheckpointError

ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # before every name in peft's file
DIGEST = "base_digest"  # in the header of the file

_A, _B, _WHOLE = ".lora_A.weight", ".lora_B.weight", ".base_layer."
_REFUSED = (  # what peft may add to plain LoRA: such an adapter would be read wrongly
    "use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "rank_pattern",
    "alpha_pattern", "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "velora_config", "monteclora_config", "arrow_config", "kasa_config",
)  # fmt: skip

_MOST_ALPHA = 1e6

ReadBase = Callable[[str, bool], Mapping[str, Tensor]]
"""Read the tensors of the base model, in our names: called with its name, and whether values are needed."""


class AdapterFile(WeightsFile):
    """The weights of an adapted model, read like a file of them.

    Attributes:
        path: The adapter's file.
        base: The model with the frozen weights, as ``adapter_config.json`` names it.
    """

    def __init__(self, folder: Path, read_base: ReadBase, nested: str | None = None) -> None:
        """Read ``adapter_config.json``; tensors are read later.

        Args:
            folder: Holds the adapter.
            read_base: Reads the base model.
            nested: See ``WeightsFile``.

        Raises:
            CheckpointError: It is missing or damaged, or not of an adapter that can be merged.
        """
        super().__init__(folder / ADAPTER_FILE, nested)
        self._read_base = read_base
        values = _read_config(folder / ADAPTER_CONFIG_FILE)
        self.base: str = values["base_model_name_or_path"]
        self._rank: int = values["r"]
        self._scale = values["lora_alpha"] / self._rank

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """See ``WeightsFile.outline``."""
        own = WeightsFile(self.path).outline
        base = {name: tensor.to("meta") for name, tensor in self._of_base(values=False).items()}
        return self._merge(base, own)

    def tensors(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """See ``WeightsFile.tensors``.

        Raises:
            CheckpointError: A file cannot be read, or the base model is not that of the training.
        """
        own = WeightsFile(self.path)
        changes = own.tensors(own.outline)
        base = self._of_base(values=True)
        with safe_open(self.path, framework="pt") as file:
            expected = (file.metadata() or {}).get(DIGEST)
        if expected is not None and expected != (actual := base_digest(base)):
            raise CheckpointError(
                f"{self.path}: its base model {self.base} has other weights now than in training ({actual[:12]}, "
                f"expected {expected[:12]}); put that one back, or train again"
            )
        merged = self._merge(base, changes)
        return {key: merged[key] for key in keys}

    def _of_base(self, *, values: bool) -> Mapping[str, Tensor]:
        try:
            return self._read_base(self.base, values)
        except CheckpointError as error:
            config = self.path.parent / ADAPTER_CONFIG_FILE
            raise CheckpointError(
                f"{self.path.parent}: holds LoRA alone, and its base model cannot be read: {error}; put it back, or "
                f"set base_model_name_or_path in {config} to its new place"
            ) from error

    def _merge(self, base: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = dict(base)
        changes = {name.removeprefix(PREFIX): tensor for name, tensor in changes.items()}
        if not changes:
            raise CheckpointError(f"{self.path}: holds no tensors; save the adapter again")
        for name, tensor in changes.items():
            layer, end = name[: -len(_A)], name[-len(_A) :]
            if end == _B and layer + _A not in changes:
                raise CheckpointError(f"{self.path}: {name} has no {_A[1:]} beside it; save the adapter again")
            if end == _A:
                weight, b = base.get(f"{layer}.weight"), changes.get(layer + _B)
                if weight is None or b is None or not _fits(weight, tensor, b):
                    raise CheckpointError(f"{self.path}: {name} does not fit the base model {self.base}; give another")
                if tensor.shape[0] != self._rank or not (tensor.is_floating_point() and b.is_floating_point()):
                    raise CheckpointError(
                        f"{self.path}: {name} must hold floats of rank {self._rank}, as {ADAPTER_CONFIG_FILE} says, "
                        f"got {tensor.dtype} of rank {tensor.shape[0]}"
                    )
                tensors[f"{layer}.weight"] = add_product(weight, tensor, b, self._scale)
            elif end != _B:
                tensors[name] = tensor
        return tensors


def add_product(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``weight + scale * b @ a`` in float32 or wider, with ``a`` (r, in) and ``b`` (out, r)."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide) + scale * (b.to(wide) @ a.to(wide))


def merge_layers(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the state dict of a generator that is being trained with ``peft``'s layers, without them.

    Args:
        tensors: Its state dict, with ``X.base_layer.weight``, ``X.lora_A.NAME.weight`` and ``X.lora_B.NAME.weight``.
        scale: Factor of the product of the two.

    Raises:
        CheckpointError: A matrix is missing, or has another shape.
    """
    matrices = {f"{name.partition('.lora_')[0]}.lora_{part}": tensor for name, tensor in tensors.items()
                for part in "AB" if f".lora_{part}." in name}  # fmt: skip
    plain = {}
    for name, tensor in tensors.items():
        layer, wrapped, rest = name.partition(_WHOLE)
        if rest == "weight":
            a, b = (matrices.get(f"{layer}.lora_{part}") for part in "AB")
            if a is None or b is None or not _fits(tensor, a, b):
                raise CheckpointError(f"{layer}: its matrices of LoRA are missing, or of another shape; save it again")
            plain[f"{layer}.weight"] = add_product(tensor, a, b, scale)
        elif wrapped:
            plain[f"{layer}.{rest}"] = tensor
        elif ".lora_" not in name:
            plain[name] = tensor
    return plain


def base_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of the weights of a base model."""
    return fingerprint({}, tensors)


def _fits(weight: Tensor, a: Tensor, b: Tensor) -> bool:
    shapes = weight.ndim, a.ndim, b.ndim
    return shapes == (2, 2, 2) and a.shape[0] == b.shape[1] and weight.shape == (b.shape[0], a.shape[1])


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values: Any = read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; an adapter needs it beside {ADAPTER_FILE}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON; save the adapter again") from error
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind != "LORA":
        raise CheckpointError(f"{path}: expected an adapter of peft_type 'LORA', got {str(kind)[:40]!r}")
    for name in _REFUSED:
        if values.get(name):
            raise CheckpointError(
                f"{path}: {name} is set, and only plain LoRA can be merged here; merge it with peft and save it whole"
            )
    if values.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias is {str(values['bias'])[:40]!r}, expected 'none'; merge it with peft")
    base, rank, alpha = (values.get(name) for name in ("base_model_name_or_path", "r", "lora_alpha"))
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{path}: base_model_name_or_path must name the base model, got {str(base)[:40]!r}")
    numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in (rank, alpha))
    if not numbers or not isinstance(rank, int) or rank < 1 or not abs(alpha) < _MOST_ALPHA:
        raise CheckpointError(
            f"{path}: expected a whole number r of at least 1 and a number lora_alpha below {_MOST_ALPHA:g}, got "
            f"{str(rank)[:40]} and {str(alpha)[:40]}"
        )
    return values
