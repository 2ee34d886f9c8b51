"""Commands on a training run that was stopped, and on a generator with another tokenizer."""

import shutil

import pytest
import torch

from aimamba.models import AiM
from aimamba.train.checkpoint import read_checkpoint
from aimamba.train.run import Run
from aimamba.train.stopped import is_stopped, open_stopped


@pytest.fixture
def stopped(trained, here, monkeypatch, aimamba):
    """Two runs, each stopped with a checkpoint of step 1."""
    for name in ("vq.toml", "aim.toml"):
        shutil.copy(trained / name, here)

    def run(name, *options):
        original = Run.update
        steps = []

        def update(self, *arguments):
            if len(steps) == 2:
                raise KeyboardInterrupt
            steps.append(0)
            return original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "update", update)
            every = ["--set", "fit.checkpoint_every=1", "--set", "fit.ema_decay=0.5", "--steps", 5, "--device", "cpu"]
            aimamba("train", f"{name}.toml", "--out", f"stopped/{name}", *every, *options)
        assert not (here / "stopped" / name / "model").exists()

    run("vq")
    run("aim", "--tokenizer", trained / "runs" / "vq")
    return here / "stopped"


def test_a_stopped_run_is_sampled_with_a_notice(stopped, trained, aimamba, here):
    answer = aimamba("sample", "--model", stopped / "aim", "-n", 1, "--device", "cpu")
    assert answer.status == 0
    assert "the run is not finished: these are the averaged weights after step 2 of 5" in answer.err
    assert {path.name for path in (here / "samples").glob("*-seed0.png")} == {"planets-seed0.png", "sprouts-seed0.png"}


def test_the_weights_are_those_a_finished_run_would_save(stopped, trained, aimamba):
    run, average = open_stopped(stopped / "aim"), read_checkpoint(stopped / "aim" / "checkpoint.pt").parts["average"]
    assert all(torch.equal(tensor, average["model"][name]) for name, tensor in run.model.state_dict().items())
    more = ["--set", "fit.ema_decay=0.5", "--tokenizer", trained / "runs" / "vq", "--device", "cpu"]
    assert aimamba("train", "aim.toml", "--out", stopped / "aim", "--steps", 5, *more).status == 0
    finished = AiM.from_pretrained(stopped / "aim")
    assert finished.config == run.model.config
    assert finished.config.tokenizer is not None
    assert not is_stopped(stopped / "aim")


def test_a_stopped_tokenizer_reconstructs_and_does_not_sample(stopped, aimamba, refusal, photos):
    answer = aimamba("reconstruct", photos / "cats", "--model", stopped / "vq", "--size", 16, "--device", "cpu")
    assert answer.status == 0
    assert "after step 2 of 5" in answer.err
    assert "trains a tokenizer" in refusal("sample", "--model", stopped / "vq")
    assert "trains a generator" in refusal("reconstruct", photos / "cats", "--model", stopped / "aim")


def test_a_stopped_run_is_described(stopped, aimamba, refusal):
    run = open_stopped(stopped / "aim")
    status, out, err = aimamba("info", stopped / "aim")
    assert (status, out.splitlines()[0]) == (0, f"generator   {run.model.num_parameters():,} parameters")
    assert "after step 2 of 5" in err
    assert aimamba("info", stopped / "aim", "--classes").out.splitlines() == ["0  planets", "1  sprouts"]
    assert aimamba("info", stopped / "vq").out.startswith("tokenizer ")
    assert "a tokenizer has no classes" in refusal("info", stopped / "vq", "--classes")
    assert "no sums to verify" in refusal("info", stopped / "aim", "--verify")


def test_a_damaged_checkpoint_and_missing_codes(stopped, refusal):
    shutil.move(stopped / "aim" / "codes", stopped / "codes")
    assert "there is no meta.json of the codes" in refusal("sample", "--model", stopped / "aim")
    shutil.move(stopped / "codes", stopped / "aim" / "codes")
    checkpoint = stopped / "aim" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "cannot be read" in refusal("sample", "--model", stopped / "aim")


def test_another_tokenizer_on_every_door(stopped, aimamba, refusal, photos, here):
    open_stopped(stopped / "vq").model.save_pretrained(here / "other")
    assert "would decode noise" in refusal("sample", "--model", stopped / "aim", "--tokenizer", "other")
    assert (
        aimamba("sample", "--model", stopped / "aim", "--tokenizer", "other", "--foreign-tokenizer", "-n", 1).status
        == 0
    )
    command = ["evaluate", "--model", stopped / "aim", "--tokenizer", "other", "--reference", photos, "--size", 16]
    assert "would decode noise" in refusal(*command)


def test_an_older_checkpoint_serves_where_the_newest_is_damaged(stopped, capsys):
    folder = stopped / "vq"
    (folder / "checkpoint.pt").rename(folder / "checkpoint-000001.pt")
    assert is_stopped(folder)
    (folder / "checkpoint.pt").write_bytes(b"PK")
    open_stopped(folder)
    assert "going on from checkpoint-000001.pt" in capsys.readouterr().err
