"""``results.json``: the settings of a study and the raw numbers of every finished run."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aimamba.errors import ConfigError
from aimamba.files import write_atomically

RESULTS_FILE = "results.json"
_FORMAT = "aimamba study 1"


class Results:
    """The results of a study: read once, written again after every run.

    Attributes:
        path: Path of the file.
        study: Name of the study.
        settings: Settings of all runs: budget, recipe, weights.
        runs: Numbers of each finished run by its name, in the order in which the runs finished.
    """

    def __init__(self, path: Path, study: str, settings: dict[str, Any], runs: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.study = study
        self.settings = settings
        self.runs = runs

    @classmethod
    def read(cls, path: Path, study: str) -> "Results":
        """Read the results of ``study``, which may be unfinished.

        Raises:
            ConfigError: There are none, or the file holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"{path} is not there; run the study without --report-only first") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON, so not a study's results; give another --out") from error
        fields = content.keys() if isinstance(content, dict) else set()
        if not {"format", "study", "settings", "runs"} <= fields or content["format"] != _FORMAT:
            raise ConfigError(f"{path} does not hold the results of a study of this version; give another --out")
        if content["study"] != study:
            raise ConfigError(f"{path} holds the study {content['study']!r}, not {study!r}; give another --out")
        return cls(path, study, content["settings"], content["runs"])

    @classmethod
    def begin(cls, path: Path, study: str, settings: Mapping[str, Any]) -> "Results":
        """Continue the results in ``path``, or start them there.

        Raises:
            ConfigError: The file holds results of another study or of other settings; the message names the first
                setting that differs.
        """
        wanted = json.loads(json.dumps(_plain(settings)))
        results = cls.read(path, study) if path.exists() else None
        if results is None or not results.runs:
            results = cls(path, study, wanted, {})
            results._write()
            return results
        old, new = dict(_flat(results.settings)), dict(_flat(wanted))
        for key in [*new, *old]:
            if old.get(key) != new.get(key):
                was, now = (repr(values[key]) if key in values else "not set" for values in (old, new))
                raise ConfigError(
                    f"{path} holds runs with {key} {was}, now it is {now}; set it back, or give another --out"
                )
        return results

    def add(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Add the numbers of a finished run and write the file atomically."""
        self.runs[name] = _plain(numbers)
        self._write()

    def _write(self) -> None:
        content = {"format": _FORMAT, "study": self.study, "settings": self.settings, "runs": self.runs}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _plain(value: Any) -> Any:
    """Return the value as JSON can hold it; infinity and NaN become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by their dotted names; the entries of a list count from 0."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        yield prefix.removesuffix("."), value
    else:
        for key, item in pairs:
            yield from _flat(item, f"{prefix}{key}.")
