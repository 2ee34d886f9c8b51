"""The base class of models that can be saved and loaded: a config beside the weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aimamba.checkpoints.checkpoint import Checkpoint, open_checkpoint
from aimamba.checkpoints.fill import fill
from aimamba.checkpoints.fingerprint import fingerprint
from aimamba.checkpoints.locate import CONFIG_FILE, WEIGHTS_FILE
from aimamba.checkpoints.sums import SUMS_KEY, sum_of_file
from aimamba.config import from_mapping, to_mapping
from aimamba.errors import CheckpointError
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
    """

    config: Config
    config_class: ClassVar[type]
    folder_in_pipeline: ClassVar[str]
    official_reader: ClassVar[OfficialReader]
    companions: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | Path | Checkpoint,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        verify: bool | None = None,
    ) -> Model:
        """Load a model in evaluation mode.

        Args:
            source: A folder that ``save_pretrained`` or a training run wrote, a saved pipeline, an official
                checkpoint (folder, ``.safetensors``, ``.pt`` or ``.bin`` file), the name of a packaged model, the id
                of a hub repository, or a checkpoint that is open already.
            device: Device of the weights. On ``meta`` the model has its shape but no values: config and shapes are
                checked, and the weights of our own folders are not read.
            dtype: Dtype of the matrices; see ``cast``.
            verify: Whether to compare our own folders' weights with the SHA-256 in ``config.json``. By default they
                are, up to 1 GB.

        Raises:
            CheckpointError: The source is missing, empty, truncated, damaged, or not a model of this class.
        """
        values = torch.device(device).type != "meta"
        stored = open_checkpoint(source).read(cls.folder_in_pipeline, values=values, verify=verify)
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
        if values and dtype.itemsize < torch.float32.itemsize:
            model.note_saved()
        return model.cast(dtype).to(device).eval()

    def note_saved(self) -> None:
        """Note what the weights' narrower dtype is about to take away; for subclasses."""

    def save_pretrained(self, folder: str | Path, *, config: Config | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, each atomically.

        Args:
            folder: The folder; made if needed.
            config: Written in place of the model's own config.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, {"format": "pt"}), size=size)
        sums = {WEIGHTS_FILE: sum_of_file(folder / WEIGHTS_FILE)}
        settings = to_mapping(self.config if config is None else config)
        content = json.dumps({"class": type(self).__name__, **settings, SUMS_KEY: sums}, indent=2)
        write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(content + "\n"))

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
        return fingerprint(settings, weights)
