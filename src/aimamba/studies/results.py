"""``results.json``: the settings of a study and the raw numbers of every finished run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from aimamba.config import check, first_difference
from aimamba.documents import read_json
from aimamba.errors import ConfigError
from aimamba.files import write_atomically
from aimamba.studies.recipe import Kind

RESULTS_FILE = "results.json"
_FORMAT = "aimamba study 1"
_SECTIONS = {"baseline": "sweep", "tokenizer": "tokenizer"}  # of a recipe, which its kind needs


class Results:
    """The results of a study, read once and written back after every run.

    Attributes:
        path: The file.
        study: Name of the study.
        settings: Settings that all runs share: budget, recipe, weights.
        runs: Numbers of each finished run by the run's name, in the order of the runs.
    """

    def __init__(self, path: Path, study: str, settings: dict[str, Any], runs: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.study = study
        self.settings = settings
        self.runs = runs

    @classmethod
    def read(cls, path: Path, study: str) -> "Results":
        """Load the results of ``study``, finished or not.

        Raises:
            ConfigError: The file does not exist, does not hold results of this study, or is damaged.
        """
        try:
            content = read_json(path)
        except FileNotFoundError as error:
            raise ConfigError(f"{path} does not exist; run the study without --report-only first") from error
        except ValueError as error:
            raise ConfigError(
                f"{path} is not valid JSON, so it holds no results of a study; give another --out"
            ) from error
        known = isinstance(content, dict) and content.get("format") == _FORMAT and "study" in content
        if not known or not all(isinstance(content.get(key), dict) for key in ("settings", "runs")):
            raise ConfigError(f"{path} does not hold the results of a study of this version; give another --out")
        if content["study"] != study:
            raise ConfigError(f"{path} holds the study {content['study']!r}, not {study!r}; give another --out")
        if (fault := _fault(content["settings"], content["runs"])) is not None:
            raise damaged(path, fault)
        return cls(path, study, content["settings"], content["runs"])

    @classmethod
    def begin(cls, path: Path, study: str, settings: Mapping[str, Any]) -> "Results":
        """Load the results in ``path`` to continue them, or begin a new file.

        Raises:
            ConfigError: The file holds results of another study or of other settings, or a run was begun with those;
                or a run was begun, and the file is not there.
        """
        wanted = json.loads(json.dumps(_plain(settings)))
        results = cls.read(path, study) if path.exists() else None
        begun = None if results and results.runs else _begun(path.parent)
        check(
            results is not None or begun is None,
            f"{begun} holds a run, and {path} with its settings is missing; restore it, or give another --out",
        )
        if results is not None:
            difference = first_difference(results.settings, wanted)
            check(
                difference is None or not (results.runs or begun),
                f"{begun or path} holds {'a run' if begun else 'runs'} with {difference}; set it back, or give another "
                "--out",
            )
        if results is None or not results.runs:
            results = cls(path, study, wanted, {})
            results._write()
        return results

    def add(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Add the numbers of a finished run and write the file, atomically."""
        self.runs[name] = _plain(numbers)
        self._write()

    def _write(self) -> None:
        content = {"format": _FORMAT, "study": self.study, "settings": self.settings, "runs": self.runs}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _begun(folder: Path) -> Path | None:
    """Return the folder of a run of the study in ``folder`` whose training has begun, if there is one."""
    recipes = (*folder.glob("runs/*/recipe.toml"), *folder.glob("*/tokenizer/recipe.toml"))
    return min((recipe.parent for recipe in recipes), default=None)


def damaged(path: Path, fault: str) -> ConfigError:
    """Return the error of results in which something is missing or has another type than it was written with."""
    return ConfigError(
        f"{path} is not what `aimamba study` writes ({fault}); restore it, or run the study again with another --out"
    )


def _fault(settings: Mapping[str, Any], runs: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the outline of results, if anything; the numbers are read by the report alone."""
    recipe = settings.get("recipe")
    if not isinstance(settings.get("budget"), int) or not isinstance(recipe, dict):
        return "settings without budget or recipe"
    kind, variants = recipe.get("kind"), recipe.get("variants")
    if not isinstance(kind, str) or kind not in get_args(Kind):
        return f"unknown kind {kind!r}"
    if (section := _SECTIONS.get(kind)) is not None and section not in recipe:
        return f"no section {section!r} in a recipe of kind {kind!r}"
    if not isinstance(variants, list) or not (variants or kind == "guidance"):
        return "a recipe without variants"
    if not all(isinstance(variant, dict) and isinstance(variant.get("name"), str) for variant in variants):
        return "a variant without a name"
    broken = [name for name, run in runs.items() if not _is_run(run)]
    return f"the run {broken[0]!r} lacks provenance or numbers" if broken else None


def _is_run(run: Any) -> bool:
    known = (
        isinstance(run, dict) and "provenance" in run and any(key in run for key in ("held_out", "samples", "speed"))
    )
    if not known or "held_out" not in run:
        return known
    held_out = run["held_out"]
    known = isinstance(held_out, dict) and "bits_per_token" in held_out
    return known and isinstance(held_out["bits_per_token"], int | float | None)


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: infinity and NaN become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
