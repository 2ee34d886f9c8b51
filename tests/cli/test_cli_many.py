"""``sample``, ``evaluate`` and ``encode`` with several processes: the same bytes and numbers, and how they end."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from aimamba.cli.many import parse_devices
from aimamba.errors import ConfigError
from photo_folders import write_photos
from refusals import one_line_error

sys.path.append(str(Path(__file__).parents[1] / "train"))

SETTINGS = ["--cfg-scale", "2", "--top-k", "9", "--seed", "3", "--device", "cpu", "--batch-size", "4"]


def commands(models):
    """Sampling into a file and into a folder, an evaluation with all that it can do, and an encoding."""
    model = ["--model", str(models / "pipeline"), *SETTINGS]
    return [
        ["sample", *model, "--npz", "s.npz", "-n", "30", "--labels", "random"],
        ["sample", *model, "--out", "pictures", "-n", "5"],
        [
            *("evaluate", *model, "-n", "22", "--reference", "real.npz", "--train", "train.npz", "--sweep", "1"),
            *("--json", "found.json", "--save-npz", "evaluated.npz"),
        ],
        [
            *("encode", str(models / "tokenizer"), "photos", "--size", "16", "--views", "center-flip"),
            *("--batch-size", "2", "--out", "codes", "--device", "cpu"),
        ],
    ]


def run_all(rank, folder, cache, all_commands, ports):
    """Run commands in a process of several; return status and what was printed."""
    from aimamba.cli import main

    os.chdir(folder)
    os.environ["AIMAMBA_CACHE"] = cache
    answers = []
    for port, command in zip(ports, all_commands, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            answers.append((main(command), out.getvalue()))
    return answers


def put_sets(folder):
    rng = np.random.default_rng(0)
    for name, count in (("real", 21), ("train", 13)):
        np.savez(folder / f"{name}.npz", arr_0=rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8))
    write_photos(folder / "photos", ("cats", "dogs"), 8, width=24, height=20)


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".png", ".npy", ".npz", ".json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_processes_make_what_one_makes(aimamba, models, here, make_cache, tmp_path_factory):
    from ranks import free_port, together

    put_sets(here)
    alone = [aimamba(*command) for command in commands(models)]
    assert [answer.status for answer in alone] == [0] * 4, alone
    other, logs = tmp_path_factory.mktemp("many"), tmp_path_factory.mktemp("logs")
    for name in ("real.npz", "train.npz"):
        shutil.copy2(here / name, other)
    shutil.copytree(here / "photos", other / "photos")
    ports = [free_port() for _ in alone]
    first, second = together(2, run_all, str(other), str(make_cache()), commands(models), ports, logs=logs)
    assert first == [(0, answer.out) for answer in alone]
    assert [(status, out) for status, out in second] == [(0, "")] * 4
    one, many = contents(here), contents(other)
    assert one.keys() == many.keys()
    assert [name for name in one if one[name] != many[name]] == []
    assert "neighbours" in one["found.json"].decode()
    assert not (other / "s.npz.parts").exists()
    assert {"codes/train/codes-00000.npy", "codes/held-out/meta.json"} <= one.keys()
    errors = [log.read_text() for log in sorted(logs.iterdir())]
    assert sum("100%" in text for text in errors) == 1, "one process shows its bars"


def test_a_lost_process_ends_the_command_and_another_number_goes_on(aimamba, models, here):
    command = ["sample", "--model", models / "pipeline", "--npz", "s.npz", "-n", "80", "--batch-size", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "aimamba", *map(str, command), "--devices", "cpu:2"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) as parent:
        while not list(Path("s.npz.parts").glob("codes-*")):
            assert parent.poll() is None, parent.stderr.read()
            time.sleep(0.02)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        error = parent.communicate(timeout=120)[1]
    assert parent.returncode == 2
    told = [line for line in error.replace("\r", "\n").splitlines() if line and "image" not in line]
    assert len(told) == 1
    assert "was ended by SIGKILL; the same command goes on with what is finished" in told[0]
    assert not Path("s.npz").exists()
    answer = aimamba(*command, "--device", "cpu")
    assert answer.status == 0
    assert "of 80 samples are there: going on from s.npz.parts" in answer.err
    whole = ["--npz", "whole.npz", "-n", "80", "--batch-size", "80", "--device", "cpu"]
    assert aimamba(*command[:3], *whole).status == 0
    assert Path("s.npz").read_bytes() == Path("whole.npz").read_bytes()


def test_devices(monkeypatch):
    assert parse_devices("cpu:3") == (3, "cpu", None)
    with one_line_error(ConfigError, "--devices all: this machine has 0 CUDA devices; cpu:2 starts two processes"):
        parse_devices("all")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parse_devices("all") == (4, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert parse_devices("2,0") == (2, "cuda", "2,0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert parse_devices("2,0") == (2, "cuda", "6,4")
    for text in ("", "0,0", "a", "cpu:0", "cpu:", "cuda:1", "-1", "0,"):
        with one_line_error(ConfigError, "expected all, different numbers as in 0,2, or cpu:2"):
            parse_devices(text)
    monkeypatch.setattr("aimamba.cli.many.usable_cores", lambda: 6)
    assert parse_devices("cpu:12") == (12, "cpu", None)
    for text in ("cpu:13", "cpu:99999999999"):
        with one_line_error(ConfigError, f"--devices {text}: at most 12 processes on the CPU of this machine"):
            parse_devices(text)
    with one_line_error(ConfigError, "there is no device 4; this machine has 4 CUDA devices, 0 to 3"):
        parse_devices("1,4")


def test_processes_that_make_no_sense_are_refused(refusal, monkeypatch, models):
    assert "exclude each other" in refusal("sample", "--devices", "cpu:2", "--device", "cpu")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "torchrun has started this one; leave --devices out" in refusal("sample", "--devices", "cpu:2")
    assert "start it without torchrun" in refusal("sample", "--like", "a.png")
    assert "--device cuda:1 is one device, and there are 2" in refusal(
        "evaluate", *("--reference", "a"), "b", "--device", "cuda:1"
    )
    assert "-n must be at least 1" in refusal("sample", "-n", 0)


def test_all_that_is_missing_is_named_before_sampling(refusal, models, here, generated, monkeypatch):
    command = ["evaluate", "--protocol", "aim-paper", "--reference", "VIRTUAL.npz", "--features", "inception.pth"]
    message = refusal(*command, "--model", "absent")
    assert message.startswith("3 things are missing or wrong: (1) ")
    assert "95,628,359 bytes, SHA-256 6726825d0af5" in message
    assert "ref_batches/imagenet/256/VIRTUAL_imagenet256_labeled.npz (2.0 GB" in message
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    put_sets(here)
    command = ["evaluate", "--model", models / "pipeline", "--reference", "real.npz", "--train", "absent"]
    message = refusal(*command, "--save-npz", "s.npz")
    assert message.startswith(
        "3 things are missing or wrong: (1) keeping the samples' codes (AIMAMBA_CACHE): No space left on"
    )
    assert "(2) --save-npz s.npz: No space left on device (" in message
    assert "(3) 'absent'" in message or "(3) absent" in message
    assert "needed, 10 bytes free); make room" in refusal("sample", *command[1:3], "--npz", "s.npz")
    assert generated == []


def test_two_commands_into_one_folder(refusal, models, here):
    from aimamba.train.lock import locked

    with locked(here / "pictures"):
        assert "is being written to by another process" in refusal(
            "sample", "--model", models / "pipeline", "--out", "pictures"
        )
