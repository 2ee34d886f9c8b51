"""The base of models that can be saved and loaded again: a config beside the weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aimamba.checkpoints.hub import CONFIG_FILE, WEIGHTS_FILE, _named, fill, find, read_checkpoint
from aimamba.checkpoints.official import is_official
from aimamba.config import from_mapping, to_mapping
from aimamba.errors import CheckpointError
from aimamba.files import write_atomically

Config = TypeVar("Config")
Model = TypeVar("Model", bound="PretrainedModel[Any]")  # not Self, which beartype refuses on a lone method


class OfficialReader(Protocol):
    """A reader of official checkpoints: their config and tensors to ours, see ``aimamba.checkpoints.official``."""

    def __call__(
        self, config: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], /
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Translate."""
        ...


class PretrainedModel(nn.Module, Generic[Config]):
    """A module built from one config, which can be saved and found again.

    Subclasses name the dataclass of their config, the sub-folder they take in a saved pipeline, and the reader of
    official checkpoints (see ``aimamba.checkpoints.official``).
    """

    config: Config
    config_class: ClassVar[type]
    folder_in_pipeline: ClassVar[str]
    official_reader: ClassVar[OfficialReader]

    @classmethod
    def from_pretrained(
        cls: type[Model], source: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Model:
        """Load a model in evaluation mode.

        Args:
            source: A folder that ``save_pretrained`` or a training run wrote, a saved pipeline, an official
                checkpoint (folder, ``.safetensors``, ``.pt`` or ``.bin`` file), the name of a packaged model, or the
                id of a hub repository.
            device: Where to put it.
            dtype: Of the matrices; see ``cast``.

        Raises:
            CheckpointError: The source is missing, empty, truncated, or not a model of this class.
        """
        place = find(source, cls.folder_in_pipeline)
        config, tensors = read_checkpoint(place)
        if is_official(config, tensors):
            with _named(place):
                config, tensors = cls.official_reader(config, tensors)
        else:
            assert config is not None
            named = config.pop("class", None)
            if named != cls.__name__:
                raise CheckpointError(
                    f"{place}: holds a model of class {named!r}, but a {cls.folder_in_pipeline} is needed"
                )
        with torch.device("meta"):
            model = cls(from_mapping(cls.config_class, config, where=str(place)))
        fill(model, tensors, where=str(place))
        return model.cast(dtype).to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, each in one atomic step."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        config = json.dumps({"class": type(self).__name__, **to_mapping(self.config)}, indent=2)
        write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(config + "\n"))

    def cast(self: Model, dtype: torch.dtype) -> Model:
        """Set the dtype of the weights; a subclass may keep sensitive ones wider."""
        return self.to(dtype)

    def num_parameters(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
