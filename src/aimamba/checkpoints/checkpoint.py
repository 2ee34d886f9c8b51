"""An opened checkpoint: found once, each of its files read once."""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from aimamba.checkpoints.adapter import ADAPTER_FILE, AdapterFile
from aimamba.checkpoints.hub import Hub
from aimamba.checkpoints.locate import (
    CONFIG_FILE,
    PICKLE_FILE,
    PIPELINE_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    find_part,
    locate,
    weights_in,
)
from aimamba.checkpoints.official import aim_from_official, is_official, keys_of_part
from aimamba.checkpoints.sums import LARGEST_VERIFIED, SUMS_KEY, check_sum, sum_of_file, sum_of_values, take_sums
from aimamba.checkpoints.weights import WeightsFile, first_line
from aimamba.documents import read_json
from aimamba.errors import CheckpointError

GENERATOR, TOKENIZER = "generator", "tokenizer"

_SIGNS = {GENERATOR: ("blocks.", "backbone.", "mamba."), TOKENIZER: ("encoder.", "vqvae.")}


class Part(NamedTuple):
    """What a checkpoint stores of one part.

    Attributes:
        place: The file or folder, for messages.
        config: The content of ``config.json``; ``None`` for a bare file of weights.
        tensors: State dict, in the names of the file.
        official: Whether config and names are those of the official code, see ``aimamba.checkpoints.official``.
    """

    place: Path
    config: dict[str, Any] | None
    tensors: dict[str, Tensor]
    official: bool


class Checkpoint:
    """A model's files, opened by ``open_checkpoint``.

    The place is looked up once, with one request to the hub at most. Which parts it holds is read from the headers of
    its files, and a part's tensors only when ``read`` asks for them.

    Attributes:
        source: The path, name or hub id it was opened by.
        path: The file or folder on this machine.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        weights: str | None = None,
        hub: Hub | None = None,
        adapters: frozenset[Path] = frozenset(),
    ) -> None:
        """Find ``source``, and download it if it is on the hub.

        Args:
            source: See ``open_checkpoint``.
            weights: See ``open_checkpoint``.
            hub: See ``open_checkpoint``.
            adapters: Folders of the adapters for which this is opened as their base model.

        Raises:
            CheckpointError: There is no such path, no such packaged model, and no such repository on the hub.
        """
        self.source = str(source)
        self.path = locate(source, hub)
        self._hub = hub or Hub()
        self._weights = weights
        self._adapters = adapters
        self._opened: dict[Path, _Files] = {}

    @cached_property
    def parts(self) -> frozenset[str]:
        """The parts it holds: ``generator``, ``tokenizer`` or both.

        Raises:
            CheckpointError: A config or a header cannot be read, or there is no model that aimamba knows.
        """
        places, faults = {}, []
        for part in _SIGNS:
            try:
                places[part] = self.place(part)
            except CheckpointError as error:
                faults.append(error)
        if not places:
            raise faults[0]
        inside = [
            part
            for part, place in places.items()
            if any(key.startswith(_SIGNS[part]) for key in self._files(place).weights.outline)
        ]
        if not inside:
            raise CheckpointError(
                f"{self.source}: holds neither a generator nor a tokenizer that aimamba knows; check the path"
            )
        return frozenset(inside)

    def require(self, part: str, remedy: str) -> None:
        """Check that the checkpoint holds a part.

        Args:
            part: ``generator`` or ``tokenizer``.
            remedy: How to get the part; the end of the message.

        Raises:
            CheckpointError: The part is not there, or the files cannot be read.
        """
        if part not in self.parts:
            [other] = self.parts
            raise CheckpointError(f"{self.source}: holds a {other} alone; {remedy}")

    def place(self, part: str) -> Path:
        """Return the file or folder that holds a part.

        Raises:
            CheckpointError: The folder has no weights in any of the known places.
        """
        return find_part(self.path, part)

    def read(self, part: str, *, values: bool = True, verify: bool | None = None) -> Part:
        """Read the config and the tensors of a part.

        Args:
            part: ``generator`` or ``tokenizer``. If one official file holds both, only this one's tensors are read.
            values: Without them the tensors are on the meta device: their shapes and dtypes come from the file's
                header, and no weights are read. An official checkpoint is read with values in either case.
            verify: Whether to compare the weights with the SHA-256 in ``config.json``, if it holds one. By default
                they are, where they are read and are no larger than 1 GiB.

        Raises:
            CheckpointError: A file is missing, empty, truncated, damaged or of another kind than its name.
        """
        place = self.place(part)
        config, weights, expected = self._files(place)
        official = is_official(config, weights.outline)  # the header first: what is cut short is called so
        if verify is None:
            verify = values and expected is not None and weights.path.stat().st_size <= LARGEST_VERIFIED
        if verify and expected is not None:
            check_sum(weights.path, sum_of_file(weights.path), expected, weights.path.parent / CONFIG_FILE)
        keys = keys_of_part(part, weights.outline) if official else list(weights.outline)
        tensors = weights.tensors(keys) if values or official else {key: weights.outline[key] for key in keys}
        return Part(place, None if config is None else dict(config), tensors, official)

    def class_names(self) -> tuple[str, ...] | None:
        """Return the class names of a saved pipeline, or ``None`` if no ``pipeline.json`` is beside the generator.

        Raises:
            CheckpointError: The file has no list of names, or its sums differ from those of the pipeline's files.
        """
        path = self.place(GENERATOR).parent / PIPELINE_FILE
        if not path.is_file():
            return None
        try:
            content = read_json(path)
            names = content["class_names"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: expected a JSON object with 'class_names'") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"{path}: expected 'class_names' to be a list of strings")
        _check_pipeline(path, content)
        return tuple(names)

    def vocabulary(self) -> Path:
        """Return the file with the vocabulary of the captions, which stands beside the generator's folder."""
        return self.place(GENERATOR).parent / VOCABULARY_FILE

    def has_sum(self, part: str) -> bool:
        """Whether the config of a part holds the SHA-256 of its weights."""
        return self._files(self.place(part)).sum is not None

    def _files(self, place: Path) -> "_Files":
        if place not in self._opened:
            path = weights_in(place) or place / WEIGHTS_FILE if place.is_dir() else place
            folder, name = path.parent, path.name
            if name == ADAPTER_FILE:
                weights: WeightsFile = AdapterFile(folder, partial(self._read_base, folder), self._weights)
            else:
                weights = WeightsFile(path, self._weights)
            known = name in (WEIGHTS_FILE, PICKLE_FILE) and (folder / CONFIG_FILE).is_file()
            has_config = known or name == ADAPTER_FILE or (place.is_dir() and name == WEIGHTS_FILE)
            config = _read_config(folder / CONFIG_FILE) if has_config else None
            summed = ADAPTER_FILE if name == ADAPTER_FILE else WEIGHTS_FILE
            sums = take_sums(config, {summed}, folder / CONFIG_FILE) if config else None
            self._opened[place] = _Files(config, weights, sums[summed] if sums else None)
        return self._opened[place]

    def _read_base(self, folder: Path, name: str, values: bool) -> Mapping[str, Tensor]:
        """Read the base model of the adapter in ``folder``."""
        base = Checkpoint(name, hub=self._hub.elsewhere(), adapters=self._adapters | {folder.resolve()})
        place = base.place(GENERATOR)
        if (place if place.is_dir() else place.parent).resolve() in base._adapters:
            raise CheckpointError(f"{name}: is this adapter itself")
        part = base.read(GENERATOR, values=values)
        return aim_from_official(part.config, part.tensors)[1] if part.official else part.tensors


class _Files(NamedTuple):
    config: dict[str, Any] | None
    weights: WeightsFile
    sum: str | None  # SHA-256 of the weights, if the config holds it


def open_checkpoint(
    source: str | Path | Checkpoint, *, weights: str | None = None, hub: Hub | None = None
) -> Checkpoint:
    """Open a checkpoint.

    Args:
        source: The folder of a saved model, a saved pipeline or a training run, an official checkpoint (a folder, or a
            ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file), the name of a packaged model, or a hub id. One that
            is open already is returned as it is.
        weights: Which of several sets of weights in a pickle to read: ``ema``, ``model`` or ``state_dict``; by default
            the first of these that is there.
        hub: Which version of a hub repository to take, and which folder in it.

    Raises:
        CheckpointError: There is no such path, no such packaged model, and no such repository on the hub.
    """
    return source if isinstance(source, Checkpoint) else Checkpoint(source, weights=weights, hub=hub)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; a model folder needs it beside its weights") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({first_line(error)})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def _check_pipeline(path: Path, content: dict[str, Any]) -> None:
    """Check ``pipeline.json`` itself and, beside it, the configs of the parts it was saved with."""
    configs = {f"{part}/{CONFIG_FILE}" for part in _SIGNS}
    if VOCABULARY_FILE in (content.get(SUMS_KEY) or {}):
        configs.add(VOCABULARY_FILE)
    sums = take_sums(content, {PIPELINE_FILE, *configs}, path)
    if content.keys() != {"class_names"}:
        [unknown, *_] = content.keys() - {"class_names"}
        raise CheckpointError(f"{path}: unknown key {unknown[:40]!r}; the file is damaged, or of a newer version")
    if sums is not None:
        check_sum(path, sum_of_values(content), sums[PIPELINE_FILE], path)
        for name in sorted(name for name in configs if (path.parent / name).is_file()):
            check_sum(path.parent / name, sum_of_file(path.parent / name), sums[name], path)
