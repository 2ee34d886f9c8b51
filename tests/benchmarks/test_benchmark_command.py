"""``python -m benchmarks``: the whole command on tiny models, and its messages."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aimamba.models import AIM_PRESETS
from aimamba.studies.provenance import provenance
from benchmarks.__main__ import _checkouts, _measure, main
from benchmarks.measurement import Measurement
from benchmarks.results import Results
from benchmarks.telling import FIGURES


def test_the_whole_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ceilings = Results(provenance(torch.device("cpu")))
    for subject in ("bandwidth", "products"):  # of an earlier run; how they are measured: test_measurements.py
        ceilings.add(Measurement(section="ceilings", subject=subject), {"rates": {"best": 1e12}, "best": 1e12})
    ceilings.write(tmp_path)
    arguments = ["--quick", "--device", "cpu", "--dtypes", "float32", "--batches", "2", "--limit-seconds", "0.05"]
    assert main([*arguments, "--only", "sampling", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "sampling of AiM, plain, aim-b, float32, batch 2, 16 tokens: seconds per image" in printed
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["ceilings"]["bytes_per_second"] > 0
    assert content["ceilings"]["operations_per_second"]["float32"] > 0
    assert content["provenance"]["torch"] == torch.__version__
    engines = {each["variant"] for each in content["measurements"] if each["subject"] == "aim"}
    assert engines == {"plain", "native"} or any("native" in line for line in content["skipped"])
    taken = {(each["section"], each["subject"], each["variant"]): each for each in content["measurements"]}
    assert {("sampling", "aim", "plain"), ("sampling", "attention", "plain")} <= set(taken)
    sampled = taken["sampling", "aim", "plain"]
    assert sampled["batch"] == 2
    assert sampled["seconds_per_picture"]["min"] <= sampled["seconds_per_picture"]["median"]
    assert sampled["times_floor"] > 1
    assert sampled["peak_bytes"] > 1 << 20
    report, figure = tmp_path / "results.md", tmp_path / "sampling.png"
    text = report.read_text()
    assert "| AiM, plain | float32 | 2 |" in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    report.unlink()
    figure.unlink()
    assert main(["--report", "--out", str(tmp_path)]) == 0
    assert report.read_text() == text
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_what_fails_is_reported_and_the_rest_continues(tmp_path, monkeypatch, capsys):
    answers = {
        "chunked": {"skipped": "failed: no such instruction"},
        "plain": {"off": {"y": 0.0}, "forward_ms": [1.0], "both_ms": [2.0], "peak_bytes": 0},
    }
    monkeypatch.setattr("benchmarks.__main__._measure", lambda measurement, left: answers[measurement.subject])
    arguments = ["--quick", "--device", "cpu", "--dtypes", "float32", "--only", "scan", "--out", str(tmp_path / "new")]
    assert main(arguments) == 0
    content = json.loads((tmp_path / "new" / "results.json").read_text())
    assert content["skipped"] == ["scan of chunked, aim-b, float32, batch 4, 16 tokens: failed: no such instruction"]
    assert [each["subject"] for each in content["measurements"]] == ["plain"]
    assert f"not measured: {content['skipped'][0]}\n" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_reported(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("benchmarks.__main__.time", SimpleNamespace(monotonic=lambda: now[0]))
    lefts = []

    def measured(measurement, left):
        lefts.append(left)
        now[0] += 60
        return {"tokens_per_second": 1.0, "peak_bytes": 0, "skipped": "no device"}

    monkeypatch.setattr("benchmarks.__main__._measure", measured)
    arguments = ["--device", "cpu", "--telling", "--seconds", "100", "--only", "training", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert lefts == [100, 40]
    skipped = json.loads((tmp_path / "results.json").read_text())["skipped"]
    ours = [row for row in FIGURES if row[:2] == ("training", "aim") or row[0] == "ceilings"]
    assert len(skipped) == len(ours)
    assert skipped[2].endswith("the 100 s for everything were over; raise --seconds, or choose with --only")
    assert skipped[2] in capsys.readouterr().out


def test_what_outlives_its_time_is_stopped_with_all_it_started(tmp_path, monkeypatch):
    """As a compiler that a worker has started, which would hold its pipes."""
    left = tmp_path / "left"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text(
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(left)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    found = _measure(Measurement(section="training", subject="aim", box_seconds=4.0))
    assert found == {"skipped": "did not finish in 4 s and was stopped"}
    process = int(left.read_text())
    while running(process) and time.monotonic() - started < 40:  # it was killed, and may take a moment to end
        time.sleep(0.05)
    assert not running(process), "it would have ended by itself after a minute"


def running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_peers_of_a_folder_are_those_that_are_there(tmp_path):
    (tmp_path / "LlamaGen").mkdir()
    assert _checkouts(tmp_path) == {"llamagen": str(tmp_path / "LlamaGen")}
    assert _checkouts(None) == _checkouts(tmp_path / "missing") == {}


def test_the_estimate_names_every_size(capsys):
    assert main(["--estimate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("at 4.3 TB/s; mean over 256 tokens")
    assert [line.split()[:2] for line in lines[2:]] == [
        [name, rows] for name in AIM_PRESETS for rows in ("2", "16", "128")
    ]
    xl = next(line.split() for line in lines if line.startswith("aim-xl") and line.split()[1] == "128")
    assert float(xl[3]) == pytest.approx(128 * 48 * 3072 * 128 * 4 * 2 / 1e9, abs=0.01), "state, read and written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "gpt"], "peer 'gpt' is unknown; expected one of official, llamagen, transformers, mamba"),
        (["--peer", "llamagen"], "peer 'llamagen' needs the folder of its checkout; write --peer llamagen=PATH"),
        (["--batches", "0"], "expected batches of at least 1 and a limit above 0 seconds"),
        (
            ["--only", "kernels"],
            "section 'kernels' needs a CUDA device, got cpu; use --device cuda, or --estimate, which needs none",
        ),
        (["--report"], "{out}/results.json does not exist; name a folder with results with --out"),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"benchmarks: {message.format(out=tmp_path)}\n"
