"""Measure: ``python -m benchmarks``.

Takes every measurement of the plan in a process of its own and writes results.json, results.md and figures after each,
so that a run which is stopped keeps what it has. Results in the same folder are added to.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimamba.devices import resolve_device
from aimamba.errors import AimambaError, ConfigError
from aimamba.files import write_atomically
from aimamba.models import AIM_PRESETS
from aimamba.studies.provenance import provenance
from benchmarks.measurement import SECTIONS, Measurement
from benchmarks.peers import PEERS, WITHOUT_PATH
from benchmarks.plan import Plan
from benchmarks.plots import write_plots
from benchmarks.report import markdown, name
from benchmarks.results import Results
from benchmarks.worker import write_measurement

_ROOT = Path(__file__).parent.parent
_SOURCES = ("mamba",)  # not measured, but needed by a peer
_PATIENCE = 300.0  # seconds for building, beside several times the limit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 for a mistake that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except AimambaError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to measure")
    parser.add_argument("--batches", nargs="+", type=int, help="images at once (default: 1 8 64)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16", "int8"), default=("float32", "bfloat16", "int8")
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help=f"peer to measure too, with its checkout: {', '.join(PEERS)}; mamba=PATH is what official needs",
    )
    parser.add_argument("--size", choices=list(AIM_PRESETS), default="aim-b", help="shape to measure")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--limit-seconds", type=float, default=60.0, help="about how long one measurement may take")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/DEVICE)")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that everything runs")
    return parser


def _run(options: argparse.Namespace) -> None:
    device = resolve_device(options.device)
    plan = Plan(
        sections=options.only,
        batches=options.batches or ((1, 2) if options.quick else (1, 8, 64)),
        dtypes=options.dtypes,
        paths=_paths(options.peer),
        size=options.size,
        device=str(device),
        limit_seconds=options.limit_seconds,
        quick=options.quick,
    )
    if min(plan.batches) < 1 or plan.limit_seconds <= 0:
        raise ConfigError("expected batches of at least 1 and a limit above 0 seconds")
    folder = options.out or _ROOT / "benchmarks" / "results" / device.type
    results = Results.open(folder, provenance(device))
    unavailable: set[tuple[str, str]] = set()
    for measurement in plan.measurements():
        key = (measurement.subject, measurement.variant)
        if key in unavailable:
            continue
        found, title = _take(measurement), _title(measurement)
        if "unavailable" in found:
            unavailable.add(key)
            results.skipped.append(f"{name(measurement.identity)}: {found['unavailable']}")
            print(f"not measured: {results.skipped[-1]}", flush=True)
        elif "skipped" in found:
            results.skipped.append(f"{title}: {found['skipped']}")
            print(f"not measured: {results.skipped[-1]}", flush=True)
        else:
            results.add(measurement, found)
            print(f"{title}: {_summary(found)}", flush=True)
        results.write(folder)
        write_atomically(folder / "results.md", lambda path: path.write_text(markdown(results), encoding="utf-8"))
    write_plots(results, folder)
    print(f"written to {folder}")


def _paths(peers: Sequence[str]) -> dict[str, str]:
    """Folders by peer.

    Raises:
        ConfigError: An unknown peer, or one without a folder that exists.
    """
    found = {}
    for peer in peers:
        known, _, path = peer.partition("=")
        if known not in (*PEERS, *_SOURCES):
            raise ConfigError(f"peer {known!r} is unknown; expected one of {', '.join((*PEERS, *_SOURCES))}")
        if known not in WITHOUT_PATH and not Path(path or "nowhere").is_dir():
            raise ConfigError(f"peer {known!r} needs the folder of its checkout; write --peer {known}=PATH")
        found[known] = str(Path(path).resolve()) if path else ""
    return found


def _take(measurement: Measurement) -> dict[str, Any]:
    """Measure in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "measurement.json", Path(folder) / "result.json"
        asked.write_text(write_measurement(measurement), encoding="utf-8")
        paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "benchmarks.worker", str(asked), str(answer)]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": paths},
                capture_output=True,
                text=True,
                check=False,
                timeout=_PATIENCE + 5 * measurement.limit_seconds,
            )
        except subprocess.TimeoutExpired:
            return {"skipped": "took many times the limit and was stopped"}
        if done.returncode != 0 or not answer.is_file():
            last = done.stderr.strip().splitlines()[-1:] or [f"ended with status {done.returncode}"]
            return {"skipped": f"failed: {last[0]}"}
        return dict(json.loads(answer.read_text(encoding="utf-8")))


def _title(measurement: Measurement) -> str:
    who = name(measurement.identity)
    return (
        f"{measurement.section} of {who}, {measurement.dtype}, batch {measurement.batch}, {measurement.tokens} tokens"
    )


def _summary(found: dict[str, Any]) -> str:
    """The first figure of a measurement."""
    for key in ("seconds_per_picture", "tokens_per_second", "milliseconds_per_token", "best", "seconds"):
        if key in found:
            value = found[key]["median"] if isinstance(found[key], dict) else found[key]
            about = "about " if found.get("estimated") else ""
            return f"{key.replace('_', ' ')} {about}{value:.4g}"
    return "done"


if __name__ == "__main__":
    sys.exit(main())
