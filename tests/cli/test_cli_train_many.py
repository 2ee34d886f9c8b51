"""``torchrun -m aimamba train``: two machines rehearsed on this one, stopped and continued."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aimamba
from aimamba.cli import main
from aimamba.models import VQModel
from aimamba.train.checkpoint import read_checkpoint
from aimamba.train.checkpoint_files import checkpoint_files
from tests.until import until

TEXT = """--size 16 --batch-size 4 --device cpu --set model.channels=8 --set model.z_channels=8 --set fit.log_every=1
--set model.norm_groups=4 --set model.codebook_size=16 --set fit.precision=float32 --set fit.evaluate_every=0
--set fit.schedule=constant"""
TINY = TEXT.split()


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            picture = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


class Machines:
    """Two agents of torchrun, each with one process, that meet at an address of this machine."""

    def __init__(self, arguments: list[str], logs: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        meet = f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{port} --rdzv-id rehearsal"
        command = [sys.executable, "-m", "torch.distributed.run", *meet.split(), "--local-addr", "127.0.0.1"]
        package = str(Path(aimamba.__file__).parents[1])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
        self.agents = []
        self.logs = [logs / f"machine-{number}.log" for number in range(2)]
        for log in self.logs:
            with log.open("w") as file:
                self.agents.append(
                    subprocess.Popen([*command, "-m", "aimamba", *arguments], stderr=file, stdout=file, env=environment)
                )

    def wait(self, timeout: float = 240.0) -> str:
        try:
            for agent in self.agents:
                agent.wait(timeout)
        finally:
            for agent in self.agents:
                agent.kill()
        return "".join(log.read_text() for log in self.logs)


def test_two_machines_are_stopped_and_continue(tmp_path, photos):
    """SIGTERM to the agent of one machine, as from Slurm; then the same command, in one more layout."""
    out = tmp_path / "run"
    arguments = ["train", "avatars-tiny-vq", "--data", str(photos), "--out", str(out), *TINY]
    first = Machines([*arguments, "--steps", "5000"], tmp_path)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        running = all(agent.poll() is None for agent in first.agents)
        assert running, first.wait(1)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.agents[1].send_signal(signal.SIGTERM)
    text = first.wait()
    assert all(agent.returncode != 0 for agent in first.agents)
    stops = re.findall(r"^aimamba: stopped after step (\d+) of 5000; the same command continues", text, re.MULTILINE)
    assert len(stops) == 1, text
    taken = stops[0]
    assert text.count("training 1") == 1, "one process prints"
    assert [path.name for path in checkpoint_files(out)] == [f"checkpoint-{int(taken):06d}.dcp"]

    steps = str(int(taken) + 2)
    second = Machines([*arguments, "--steps", steps, "--set", "parallel.shard=2"], tmp_path)
    text = second.wait()
    assert [agent.returncode for agent in second.agents] == [0, 0], text
    assert text.count(f"continuing {out} after step {taken} of {steps}") == 1
    assert "2 processes: 1 x 2 (copies x shards)" in text
    assert text.count(f"{out}/model: {steps} steps, held out: ") == 1
    assert read_checkpoint(checkpoint_files(out)[0]).step == int(steps)
    assert VQModel.from_pretrained(out).num_parameters() > 0
    assert "Warning" not in text.replace("warnings.warn", "")


def test_impatient_ctrl_c_does_not_lose_the_checkpoint(tmp_path, photos):
    """Three of them in a row, to the command, as a terminal sends them; its processes are in groups of their own."""
    out, log = tmp_path / "run", tmp_path / "log"
    command = ["train", "avatars-tiny-vq", "--data", str(photos), "--out", str(out)]
    command += [*TEXT.replace("--device cpu", "").split(), "--steps", "5000", "--devices", "cpu:2"]
    package = str(Path(aimamba.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
    line = [sys.executable, "-m", "aimamba", *command]
    with log.open("w") as file:
        given = {"stderr": file, "stdout": file, "env": environment, "start_new_session": True}
        parent = subprocess.Popen(line, **given, preexec_fn=_heed_ctrl_c)  # noqa: PLW1509 - one thread
    until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text(), 120)
    for _ in range(3):
        os.killpg(parent.pid, signal.SIGINT)
        time.sleep(0.1)
    assert parent.wait(60) == 130, log.read_text()
    text = log.read_text()
    [taken] = re.findall(r"stopped after step (\d+) of 5000; the same command continues", text) or [text]
    assert [path.name for path in checkpoint_files(out)] == [f"checkpoint-{int(taken):06d}.dcp"]
    assert "frame #" not in text
    assert not (out / "checkpoint.dcp.partial").exists()


def _heed_ctrl_c() -> None:
    """What a shell starts in the background ignores it, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_settings_for_several_processes_name_the_command(tmp_path, capsys):
    assert main(["train", "avatars-tiny-vq", "--out", str(tmp_path / "run"), "--set", "parallel.shard=2"]) == 2
    error = capsys.readouterr().err
    assert "parallel.shard = 2 needs 2 processes, and there is one; type: torchrun --nproc-per-node 2 -m" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch-size", "6"], "fit.batch_size = 6 must be a multiple of 4 processes x fit.accumulation = 1"),
        (["--set", "parallel.shard=3"], "parallel.shard = 3 does not fit 4 processes"),
        (["--device", "cuda:1"], "--device cuda:1 is one device, and there are 4 processes"),
        (["--set", "fit.compile=true"], "fit.compile = true compiles the model of one process, and there are 4"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_starts(tmp_path, monkeypatch, capsys, given, message):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "avatars-tiny-vq", "--out", str(tmp_path / "run"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
