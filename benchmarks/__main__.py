"""Measure speed and memory of AiM, its peers and the machine.

Every measurement runs in its own process. results.json, results.md and figures are written after each of them, so that
a run that is stopped keeps what it has. A later run adds to the results in the same folder.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimamba.devices import resolve_device
from aimamba.errors import AimambaError, ConfigError
from aimamba.models import AIM_PRESETS
from aimamba.studies.provenance import provenance
from benchmarks.estimate import estimate
from benchmarks.measurement import SECTIONS, Measurement
from benchmarks.peers import PEERS, WITHOUT_PATH
from benchmarks.plan import Plan
from benchmarks.plots import write_plots
from benchmarks.report import name, profiled, summary, write_markdown
from benchmarks.results import Results
from benchmarks.worker import write_measurement

_ROOT = Path(__file__).parent.parent
_SOURCES = ("mamba",)  # not measured, but needed by a peer
_CHECKOUTS = {"official": "AiM", "mamba": "mamba", "llamagen": "LlamaGen"}
_LEAST_SECONDS = 5.0  # a measurement that has less is not begun
_EXTRA_SECONDS = 300.0  # for building and compiling, in addition to several times the limit
_BATCHES, _QUICK_BATCHES = (1, 8, 64), (1, 2)
_DTYPES = ("float32", "bfloat16", "int8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 2 for an error that the user can fix, 0 otherwise.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.estimate:
            print(*estimate(options.bandwidth * 1e12, options.batches or _BATCHES), sep="\n")
        elif options.report:
            _report(options)
        else:
            _run(options)
    except AimambaError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        metavar="SECTION",
        help=f"sections to measure (default: all that the device can run): {', '.join(SECTIONS)}",
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, metavar="IMAGES", help="numbers of images in a batch (default: 1 8 64)"
    )
    parser.add_argument("--dtypes", nargs="+", choices=_DTYPES, default=_DTYPES, help="dtypes of the matrices")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help=f"peer to measure as well, with its checkout: {', '.join(PEERS)}; official also needs mamba=PATH",
    )
    parser.add_argument(
        "--size",
        choices=list(AIM_PRESETS),
        help="preset to measure (default: aim-b; for kernels and scan on CUDA, several)",
    )
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        help="folder with checkouts of the peers; those that are there are measured: AiM, mamba, LlamaGen",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--limit-seconds", type=float, default=60.0, help="approximate time limit of one measurement")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="time for everything; what is left then is not measured"
    )
    parser.add_argument(
        "--telling",
        action="store_true",
        help="only the most telling figures of a GPU, the best first, each within its own time",
    )
    parser.add_argument("--layouts", action="store_true", help="kernels, scan: time every launch layout as well")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/DEVICE)")
    parser.add_argument("--quick", action="store_true", help="use tiny models, to check that everything runs")
    parser.add_argument("--report", action="store_true", help="only write results.md and figures from results.json")
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="only print the bytes of a decoding step and the least time it can take on a GPU; needs no device",
    )
    parser.add_argument(
        "--bandwidth", type=float, default=4.3, metavar="TB/S", help="for --estimate (default: 4.3, about an H200)"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    device = resolve_device(options.device)
    plan = Plan(
        sections=options.only or SECTIONS,
        batches=options.batches or (_QUICK_BATCHES if options.quick else _BATCHES),
        dtypes=options.dtypes,
        paths=_checkouts(options.peers) | _paths(options.peer),
        size=options.size,
        device=str(device),
        limit_seconds=options.limit_seconds,
        quick=options.quick,
        layouts=options.layouts,
        telling=options.telling,
    )
    if min(plan.batches) < 1 or not plan.limit_seconds > 0 or not options.seconds > 0:
        raise ConfigError("expected batches of at least 1 and a limit above 0 seconds")
    end = time.monotonic() + options.seconds
    if "kernels" in (options.only or ()) and device.type != "cuda":
        raise ConfigError(
            f"section 'kernels' needs a CUDA device, got {device}; use --device cuda, or --estimate, which needs none"
        )
    folder = _folder(options)
    results = Results.open(folder, provenance(device))
    unavailable: set[tuple[str, str]] = set()
    for measurement in plan.measurements():
        key = (measurement.subject, measurement.variant)
        if key in unavailable:
            continue
        left, title = end - time.monotonic(), _title(measurement)
        found = _measure(measurement, left) if left > _LEAST_SECONDS else {"skipped": _no_time(options)}
        if "unavailable" in found:
            unavailable.add(key)
            results.skipped.append(f"{name(measurement.identity)}: {found['unavailable']}")
            print(f"not measured: {results.skipped[-1]}", flush=True)
        elif "skipped" in found:
            results.skipped.append(f"{title}: {found['skipped']}")
            print(f"not measured: {results.skipped[-1]}", flush=True)
        else:
            results.add(measurement, found)
            print(f"{title}: {summary(found)}", *profiled(found), sep="\n", flush=True)
        results.write(folder)
        write_markdown(results, folder)
    write_plots(results, folder)
    print(f"written to {folder}")


def _report(options: argparse.Namespace) -> None:
    folder = _folder(options)
    results = Results.load(folder)
    write_markdown(results, folder)
    write_plots(results, folder)
    print(f"written to {folder}")


def _folder(options: argparse.Namespace) -> Path:
    if options.out is not None:
        return Path(options.out)
    return _ROOT / "benchmarks" / "results" / resolve_device(options.device).type


def _paths(peers: Sequence[str]) -> dict[str, str]:
    """Return folders by peer.

    Raises:
        ConfigError: A peer is unknown, or its folder is missing.
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


def _checkouts(folder: Path | None) -> dict[str, str]:
    """Return the folders of the peers whose checkouts are in ``folder``, by peer."""
    if folder is None:
        return {}
    found = {peer: folder / name for peer, name in _CHECKOUTS.items()}
    return {peer: str(path.resolve()) for peer, path in found.items() if path.is_dir()}


def _no_time(options: argparse.Namespace) -> str:
    return f"the {options.seconds:g} s for everything were over; raise --seconds, or choose with --only"


def _measure(measurement: Measurement, left: float = float("inf")) -> dict[str, Any]:
    """Take a measurement in a new process, which is stopped after its own time or the time that is ``left``."""
    box = measurement.box_seconds or _EXTRA_SECONDS + 5 * measurement.limit_seconds
    with tempfile.TemporaryDirectory() as folder:
        request, result, errors = (Path(folder) / name for name in ("measurement.json", "result.json", "errors"))
        request.write_text(write_measurement(measurement), encoding="utf-8")
        paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "benchmarks.worker", str(request), str(result)]
        # Files and a group of its own: a compiler that outlives its worker must neither hold a pipe nor go on working.
        with errors.open("wb") as stream:
            worker = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": paths},
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
            )
            try:
                status = worker.wait(timeout=None if min(box, left) == float("inf") else min(box, left))
            except subprocess.TimeoutExpired:
                return {"skipped": f"did not finish in {min(box, left):.0f} s and was stopped"}
            finally:
                _stop(worker)
        if status != 0 or not result.is_file():
            text = errors.read_text(encoding="utf-8", errors="replace")
            last = text.strip().splitlines()[-1:] or [f"ended with status {status}"]
            return {"skipped": f"failed: {last[0]}"}
        return dict(json.loads(result.read_text(encoding="utf-8")))


def _stop(worker: "subprocess.Popen[bytes]") -> None:
    """End a worker and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _title(measurement: Measurement) -> str:
    who = name(measurement.identity)
    return (
        f"{measurement.section} of {who}, {measurement.size}, {measurement.dtype}, batch {measurement.batch}, "
        f"{measurement.tokens} tokens"
    )


if __name__ == "__main__":
    sys.exit(main())
