"""The one file from which a stopped run continues, and whether it may."""

import dataclasses
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from aimamba.errors import CheckpointError, ConfigError
from aimamba.files import write_atomically
from aimamba.train.toml import read_toml, to_toml

Resolve = Callable[[dict[str, Any]], Mapping[str, Any]]  # from a recipe as written to all its settings

_FORMAT = "aimamba training run 1"
_FREE = {
    "description",
    *(f"fit.{key}" for key in ("steps", "log_every", "evaluate_every", "sheet_every", "checkpoint_every")),
}


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint can hold: a module, an optimiser, an average."""

    def state_dict(self) -> dict[str, Any]:
        """Give tensors and plain values."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Take up what ``state_dict`` gave."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after some steps.

    Attributes:
        step: How many steps were taken.
        seconds: How long they took.
        recipe: The resolved recipe, as TOML.
        parts: The state of each thing that changes in training, by name.
        basis: Fingerprints of what the run stands on beside its recipe, by name.
    """

    step: int
    seconds: float
    recipe: str
    parts: dict[str, dict[str, Any]]
    basis: dict[str, str] = dataclasses.field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` so that ``path`` is at every moment the old file or the new one, and whole.

    The draft beside it has one fixed name, so that a run that is killed in writing leaves no more than one of them.
    """
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    content = {"format": _FORMAT, **fields}
    write_atomically(path, lambda draft: torch.save(content, draft), draft=f"{path.name}.partial")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the file that ``write_checkpoint`` wrote, onto the CPU; nothing in it is executed.

    Raises:
        CheckpointError: The file is truncated or was not written by a run of this version.
    """
    mend = f"delete {path.name} to start over, or give another --out"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn archive or pickle can fail in any way
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}), perhaps cut short; {mend}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a training run; {mend}")
    names = [field.name for field in dataclasses.fields(Checkpoint)]
    return Checkpoint(**{name: content[name] for name in names if name in content})  # 0.1.0 kept no basis


def restore(checkpoint: Checkpoint, parts: Mapping[str, Stateful], path: Path) -> None:
    """Put the state in ``checkpoint``, which was read from ``path``, back into ``parts``.

    Raises:
        CheckpointError: It is the state of other parts than these.
    """
    for name, part in parts.items():
        try:
            part.load_state_dict(checkpoint.parts[name])
        except (KeyError, RuntimeError, ValueError) as error:
            first = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"{path} does not fit this {name} ({first}); delete {path.name} to start over, or give another --out"
            ) from error


def find_checkpoint(out: Path, recipe: str, steps: int, resolve: Resolve) -> Checkpoint | None:
    """Give the checkpoint from which the run folder ``out`` goes on to ``steps`` steps of ``recipe``, if there is one.

    Raises:
        ConfigError: It is of another recipe, or beyond ``steps``.
        CheckpointError: It cannot be read.
    """
    path = out / "checkpoint.pt"
    if not path.exists():
        return None
    saved = read_checkpoint(path)
    check_same_recipe(saved.recipe, recipe, out, resolve)
    if saved.step > steps:
        raise ConfigError(
            f"{out} has taken {saved.step} steps, more than fit.steps = {steps}; "
            f"ask for at least {saved.step}, or give another --out"
        )
    return saved


def check_same_basis(before: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Refuse to continue the run in ``folder`` on anything else than what it began on; both by name.

    Raises:
        ConfigError: A fingerprint differs. One that was not kept is not missed.
    """
    for name, fingerprint in now.items():
        if (was := before.get(name, fingerprint)) != fingerprint:
            raise ConfigError(
                f"{folder} holds a run on another {name} ({was[:12]}) than the one given ({fingerprint[:12]}); "
                "give that one, or another --out"
            )


def check_same_recipe(before: str, now: str, folder: Path, resolve: Resolve) -> None:
    """Refuse to continue a run under a recipe that would make it another one.

    What counts is the value of every setting, written down or left to a default: a run of a version that did not know
    a setting goes on at the default. The number of steps, the intervals and the description may change.

    Args:
        before: The recipe that the run in ``folder`` began with, as TOML.
        now: The recipe asked for, as TOML.
        folder: The run's folder.
        resolve: Gives all settings of a recipe.

    Raises:
        ConfigError: Anything else differs, and it names the first such key; or ``before`` cannot be understood.
    """
    try:
        old = dict(_flat(resolve(tomllib.loads(before))))
    except ConfigError as error:
        raise ConfigError(
            f"{folder} holds a run that this version cannot continue ({error}); give another --out"
        ) from error
    new = dict(_flat(resolve(tomllib.loads(now))))
    for key in [*new, *old]:
        if key not in _FREE and old.get(key) != new.get(key):
            was, wanted = (repr(values[key]) if key in values else "not set" for values in (old, new))
            raise ConfigError(
                f"{folder} holds a run with {key} {was}, now it is {wanted}; set it back, or give another --out"
            )


def is_finished(out: Path, recipe: str, steps: int, resolve: Resolve) -> bool:
    """Say whether the run folder ``out`` holds the model that ``steps`` steps of ``recipe`` make.

    Raises:
        ConfigError: It holds another model, which the run would replace and could not train on from.
    """
    model, made_by = out / "model", out / "model" / "recipe.toml"
    if not model.exists():
        return False
    if not made_by.exists():
        raise ConfigError(f"{model} was not made by a training run and would be replaced; give another --out")
    made = read_toml(made_by)
    check_same_recipe(to_toml(made), recipe, out, resolve)
    if made["fit"]["steps"] == steps:
        return True
    if not (out / "checkpoint.pt").exists():
        raise ConfigError(
            f"{out} holds a model of {made['fit']['steps']} steps and no checkpoint.pt to train on from; "
            f"give another --out, or delete {model} to start over"
        )
    return False


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
