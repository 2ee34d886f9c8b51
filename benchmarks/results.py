"""The results file: measurements of one machine, with the floors computed from its ceilings."""

import json
from pathlib import Path
from typing import Any

from aimamba.errors import ConfigError
from aimamba.files import write_atomically
from benchmarks.floors import Floor, Work, sampling_floor, training_floor, training_operations
from benchmarks.measurement import SECTIONS, Measurement

FILE = "results.json"
_MACHINE = ("cpu", "cores", "threads", "device", "gpu", "torch", "python")


class Results:
    """``results.json``. A later run adds to it, and replaces what it measures again.

    Attributes:
        provenance: Machine, versions, commit and date of the latest run.
        measurements: Settings and numbers, one mapping for each measurement.
        skipped: One line for each measurement that could not be taken.
    """

    def __init__(self, provenance: dict[str, Any]) -> None:
        self.provenance = provenance
        self.measurements: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Load the results in ``folder``.

        Raises:
            ConfigError: The file is missing or cannot be read.
        """
        path = folder / FILE
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; name a folder with results with --out")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results = cls(content["provenance"])
            results.measurements, results.skipped = content["measurements"], content["skipped"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: expected results of this command; choose another folder with --out") from error
        results.complete()
        return results

    @classmethod
    def open(cls, folder: Path, provenance: dict[str, Any]) -> "Results":
        """Continue the results in ``folder``, or start new ones.

        Raises:
            ConfigError: The file is from another machine, or cannot be read.
        """
        results = cls(provenance)
        if not (folder / FILE).is_file():
            return results
        before = cls.load(folder)
        for name in _MACHINE:
            if before.provenance.get(name) != provenance.get(name):
                raise ConfigError(
                    f"{folder / FILE} was measured with {name} {before.provenance.get(name)!r}, this run has "
                    f"{provenance.get(name)!r}; results of two machines cannot be compared: choose another folder "
                    "with --out"
                )
        results.measurements = before.measurements
        return results

    def add(self, measurement: Measurement, found: dict[str, Any]) -> None:
        """Add a measurement; it replaces an older one with the same settings, but a ceiling can only rise."""
        identity = measurement.identity
        older = [each for each in self.measurements if all(each[key] == identity[key] for key in identity)]
        self.measurements = [each for each in self.measurements if each not in older]
        if measurement.section == "ceilings":
            found = max(found, *older, key=lambda each: float(each["best"])) if older else found
        self.measurements.append({"date": self.provenance["date"], **identity, **found})
        self.measurements.sort(key=lambda each: SECTIONS.index(each["section"]))

    def of(self, section: str) -> list[dict[str, Any]]:
        """Return the measurements of one section."""
        return [each for each in self.measurements if each["section"] == section]

    def ceilings(self) -> dict[str, Any] | None:
        """Return ``bytes_per_second`` and, by dtype, ``operations_per_second``; None if bandwidth was not measured.

        Where products of a narrow dtype are slower than float32, the rate of float32 counts: a kernel can convert
        the numbers first.
        """
        found = self.of("ceilings")
        bandwidth = [each["best"] for each in found if each["subject"] == "bandwidth"]
        rates = {each["dtype"]: each["best"] for each in found if each["subject"] == "products"}
        rates = {dtype: max(rate, rates.get("float32", 0.0)) for dtype, rate in rates.items()}
        return {"bytes_per_second": bandwidth[-1], "operations_per_second": rates} if bandwidth else None

    def complete(self) -> None:
        """Compute floors and shares of the bandwidth."""
        if (ceilings := self.ceilings()) is not None:
            for each in self.measurements:
                add_floor(each, ceilings)
        add_shares(self.of("kernels"))

    def write(self, folder: Path) -> None:
        """Compute floors and shares of the bandwidth, and write the file."""
        self.complete()
        content = {
            "provenance": self.provenance,
            "ceilings": self.ceilings(),
            "measurements": self.measurements,
            "skipped": self.skipped,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))


def add_floor(found: dict[str, Any], ceilings: dict[str, Any]) -> None:
    """Add ``floor`` and ``times_floor`` to a time, and the share of the matrix rate to a training speed."""
    if "work" not in found:
        return
    work, tokens, batch = Work.read(found["work"]), found["tokens"], found["batch"]
    if found["section"] == "training":
        rate = ceilings["operations_per_second"].get(found["dtype"])
        for name, mixing in (("matrix_share", False), ("matrix_share_with_mixing", True)):
            operations = training_operations(work, images=batch, tokens=tokens, mixing=mixing)
            found[name] = operations / found["seconds"]["median"] / rate if rate else None
        least = training_floor(
            work,
            found["dtype"],
            ceilings,
            images=batch,
            tokens=tokens,
            parameters=found["parameters"],
            updates=found.get("updates", False),
        )
        found["floor"] = {"seconds": least.seconds, **_described(least)}
        found["times_floor"] = found["seconds"]["median"] / least.seconds
        return
    seen = tokens + 1 if found["section"] == "growth" else None
    floor = sampling_floor(work, found["dtype"], ceilings, rows=2 * batch, tokens=tokens, seen=seen)
    found["floor"] = {
        "milliseconds_per_token": 1000 * floor.seconds,
        "seconds_per_picture": floor.seconds * tokens / batch,
        **_described(floor),
    }
    taken = (
        found["seconds_per_picture"]["median"] / tokens * batch * 1000
        if found["section"] == "sampling"
        else found["milliseconds_per_token"]["median"]
    )
    found["times_floor"] = taken / found["floor"]["milliseconds_per_token"]


def _described(floor: Floor) -> dict[str, Any]:
    return {
        "bound": floor.bound,
        "bytes": floor.bytes,
        "operations": floor.operations,
        "bytes_milliseconds": 1000 * floor.bytes_seconds,
        "operations_milliseconds": None if floor.operations_seconds is None else 1000 * floor.operations_seconds,
    }


def add_shares(kernels: list[dict[str, Any]]) -> None:
    """Add to each timing of a kernel the share of the rate that a copy reached, where that was measured."""
    rates = [each["bytes_per_second"] for each in kernels if each["subject"] == "copy"]
    if not rates:
        return
    for piece in (piece for each in kernels for piece in each.get("pieces", ())):
        if "microseconds" in piece:
            piece["share_of_bandwidth"] = piece["bytes"] / (piece["microseconds"] * 1e-6) / rates[-1]
