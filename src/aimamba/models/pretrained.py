"""The base class of models that can be saved and loaded: a config beside the weights."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, TypeVar, Unpack

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aimamba.checkpoints.checkpoint import Checkpoint, open_checkpoint
from aimamba.checkpoints.fill import fill
from aimamba.checkpoints.fingerprint import fingerprint
from aimamba.checkpoints.hub import Hub, HubArguments
from aimamba.checkpoints.locate import CONFIG_FILE, WEIGHTS_FILE
from aimamba.checkpoints.sums import SUMS_KEY, sum_of_file
from aimamba.config import from_mapping, to_mapping
from aimamba.devices import resolve_dtype
from aimamba.errors import CheckpointError, ConfigError
from aimamba.files import write_atomically

Config = TypeVar("Config")
Model = TypeVar("Model", bound="PretrainedModel[Any]")  # not Self, which beartype refuses on a lone method


class OfficialReader(Protocol):
    """Translates an official config and state dict to ours, see ``aimamba.checkpoints.official``."""

    def __call__(
        self, config: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], /
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Translate."""
        ...


class PretrainedModel(nn.Module, Generic[Config]):
    """A module that is built from one config, and can be saved and loaded.

    Attributes:
        config: The config it was built from.
        config_class: The dataclass of its config.
        folder_in_pipeline: Its sub-folder in a saved pipeline: ``generator`` or ``tokenizer``.
        official_reader: Translates official checkpoints, see ``aimamba.checkpoints.official``.
        companions: Settings that name other models; they are no part of the fingerprint.
        since: Settings that earlier versions did not know, with dots within sections, and their defaults; at these
            they are no part of it either.
    """

    config: Config
    _stored_dtypes: Mapping[str, torch.dtype] = MappingProxyType({})  # of the weights in the file it was loaded from
    config_class: ClassVar[type]
    folder_in_pipeline: ClassVar[str]
    official_reader: ClassVar[OfficialReader]
    companions: ClassVar[tuple[str, ...]] = ()
    since: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | Path | Checkpoint,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        verify: bool | None = None,
        torch_dtype: str | torch.dtype | None = None,
        **hub: Unpack[HubArguments],
    ) -> Model:
        """Load a model in evaluation mode.

        Args:
            source: A folder that ``save_pretrained`` or a training run wrote, a saved pipeline, an official
                checkpoint (folder, ``.safetensors``, ``.pt`` or ``.bin`` file), the name of a packaged model, the id
                of a hub repository, or a checkpoint that is open already.
            device: Device of the weights. On ``meta`` the model has its shape but no values: config and shapes are
                checked, and the weights of our own folders are not read.
            dtype: Dtype of the matrices, see ``cast``, or its name; float32 by default, and ``auto`` for that of the
                file.
            verify: Whether to compare our own folders' weights with the SHA-256 in ``config.json``. By default they
                are, up to 1 GB.
            torch_dtype: Another name of ``dtype``.
            hub: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``subfolder``, see ``HubArguments``.

        Raises:
            CheckpointError: The source is missing, empty, truncated, damaged, or not a model of this class.
            ConfigError: There is no such dtype or argument.
        """
        place, asked = Hub.of(hub), one_dtype(dtype, torch_dtype)
        values = torch.device(device).type != "meta"
        stored = open_checkpoint(source, hub=place).read(cls.folder_in_pipeline, values=values, verify=verify)
        config, tensors = stored.config, stored.tensors
        if stored.official:
            try:
                config, tensors = cls.official_reader(config, tensors)
            except CheckpointError as error:
                raise CheckpointError(f"{stored.place}: {error}") from error
        else:
            assert config is not None
            named = config.pop("class", None)
            if named != cls.__name__:
                raise CheckpointError(
                    f"{stored.place}: holds a model of class {named!r}, but a {cls.folder_in_pipeline} is needed"
                )
        with torch.device("meta"):
            model = cls(from_mapping(cls.config_class, config, where=str(stored.place)))
        fill(model, tensors, where=str(stored.place))
        model._stored_dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        return model.cast(model.dtype if asked is None else asked).to(device).eval()

    def save_pretrained(
        self, folder: str | Path, *, config: Config | None = None, dtype: str | torch.dtype | None = None
    ) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, each atomically.

        Args:
            folder: The folder; made if needed.
            config: Written in place of the model's own config.
            dtype: Dtype of the matrices in the file. By default weights that were loaded from a narrower dtype, and are
                still exactly those, return to it; all others are written as they are.

        Raises:
            ConfigError: There is no such dtype.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = (self if dtype is None else self.in_dtype(one_dtype(dtype))).state_dict()
        narrower = self._stored_dtypes if dtype is None else {}
        tensors = {name: _narrowed(tensor.detach(), narrower.get(name)).cpu() for name, tensor in state.items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, {"format": "pt"}), size=size)
        self.save_config(folder, WEIGHTS_FILE, config)

    def save_config(self, folder: Path, weights: str, config: Config | None = None) -> None:
        """Write ``config.json`` beside the file of ``weights``, with its sum; see ``save_pretrained``."""
        sums = {weights: sum_of_file(folder / weights)}
        settings = to_mapping(self.config if config is None else config)
        content = json.dumps({"class": type(self).__name__, **settings, SUMS_KEY: sums}, indent=2)
        write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(content + "\n"))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._largest().device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the matrices; others may be wider, see ``cast``."""
        return self._largest().dtype

    def _largest(self) -> Tensor:
        return max(self.parameters(), key=Tensor.numel)

    def in_dtype(self: Model, dtype: torch.dtype | None) -> Model:
        """Return the model itself if its matrices have this dtype, and otherwise a copy that has it."""
        return self if dtype in (None, self.dtype) else copy.deepcopy(self).cast(dtype)

    def cast(self: Model, dtype: torch.dtype) -> Model:
        """Set the dtype of the weights; a subclass may keep sensitive ones wider."""
        return self.to(dtype)

    def num_parameters(self) -> int:
        """Return the number of parameters; shared ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def fingerprint(self, prefixes: tuple[str, ...] = ("",)) -> str:
        """Return the SHA-256 of the config and of the weights in float32: equal for equal models.

        Args:
            prefixes: Only the weights whose names begin with one of these are taken; by default all.
        """
        weights = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefixes)}
        settings = {name: value for name, value in to_mapping(self.config).items() if name not in self.companions}
        for path, usual in self.since.items():
            *sections, name = path.split(".")
            section = settings
            for part in sections:
                section = section.get(part, {})
            if section.get(name) == usual:
                del section[name]
        return fingerprint(settings, weights)


def one_dtype(dtype: str | torch.dtype | None, torch_dtype: str | torch.dtype | None = None) -> torch.dtype | None:
    """Return the dtype that is asked for by either name: float32 if by none, and None for ``auto``.

    Raises:
        ConfigError: There is no such dtype, or the two differ.
    """
    given = [value for value in (dtype, torch_dtype) if value is not None]
    found = [None if value == "auto" else resolve_dtype(value) for value in given]
    if len(set(found)) > 1:
        raise ConfigError(f"dtype and torch_dtype are the same setting, got {dtype} and {torch_dtype}; leave one out")
    return found[0] if found else torch.float32


def _narrowed(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor in a narrower dtype where that is exact, and otherwise as it is."""
    if dtype is not None and dtype.is_floating_point and dtype.itemsize < tensor.dtype.itemsize:
        narrow = tensor.to(dtype)
        if torch.equal(narrow.to(tensor.dtype), tensor):
            return narrow.contiguous()
    return tensor.contiguous()
