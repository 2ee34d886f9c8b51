"""Runs of several processes: the same steps as one process, whatever the layout; checkpoints that any layout reads."""

import json
import signal
import time
from pathlib import Path

import pytest
import ranks_task
import torch
from ranks import Ranks, together
from ranks_task import alone, settings, train
from torch.testing import assert_close

from aimamba.train.checkpoint import checkpoint_files, read_checkpoint
from aimamba.train.stopped import is_stopped

LAYOUTS = [(2, 1), (1, 2), (2, 2)]
EXACT = {"rtol": 0, "atol": 0}


def newest(out: Path):
    return read_checkpoint(checkpoint_files(out)[0])


def losses(out: Path, metrics, name: str = "loss") -> list[float]:
    return [line[name] for line in metrics(out, "train")]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The folder of a run of one process, for each stage."""
    runs: dict[str, Path] = {}

    def run(stage: str) -> Path:
        if stage not in runs:
            runs[stage] = tmp_path_factory.mktemp("single") / stage
            alone(stage, runs[stage], {})
        return runs[stage]

    return run


@pytest.mark.parametrize("stage", ["generator", "tokenizer"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_curve_of_one_process(tmp_path, single, metrics, stage, layout):
    out = tmp_path / "run"
    results = together(layout[0] * layout[1], train, stage, out, layout, {}, logs=tmp_path)
    assert results == [results[0]] * len(results)
    one, many = metrics(single(stage)), metrics(out)
    assert [(line["step"], line["split"]) for line in many] == [(line["step"], line["split"]) for line in one]
    for ours, theirs in zip(many, one, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss" if "loss" in ours else "reconstruction"] == pytest.approx(
            theirs["loss" if "loss" in theirs else "reconstruction"], abs=1e-5
        )
    assert losses(out, metrics)[-1] < losses(out, metrics)[0]
    for name in ["adaptive_weight", "discriminator"] if stage == "tokenizer" else ["gradient_norm"]:
        seen = [line.get(name, 0.0) for line in metrics(out, "train")]
        assert seen == pytest.approx([line.get(name, 0.0) for line in metrics(single(stage), "train")], rel=1e-3)
    assert_close(newest(out).parts["average"], newest(single(stage)).parts["average"], rtol=0, atol=2e-4)
    assert {path.name for path in out.iterdir()} == {
        "recipe.toml", "metrics.jsonl", "checkpoint-000020.dcp", "sheets", "model",
    } | {path.name for path in single(stage).iterdir() if path.name == "model-last"}  # fmt: skip


def test_parts_of_a_batch_are_those_of_one_process(tmp_path, metrics):
    """With the discriminator, whose batch norms see a part at a time."""
    alone("tokenizer", tmp_path / "one", {"accumulation": 2})
    together(2, train, "tokenizer", tmp_path / "two", (1, 2), {"accumulation": 2}, logs=tmp_path)
    assert losses(tmp_path / "two", metrics) == pytest.approx(losses(tmp_path / "one", metrics), abs=1e-5)


def test_bfloat16_and_activation_checkpointing(tmp_path, metrics):
    changes, options = {"precision": "bfloat16"}, {"checkpointing": True}
    alone("generator", tmp_path / "one", changes, options)
    together(2, train, "generator", tmp_path / "two", (1, 2), changes, None, options, logs=tmp_path)
    assert losses(tmp_path / "two", metrics) == pytest.approx(losses(tmp_path / "one", metrics), abs=2e-3)


@pytest.mark.parametrize("stage", ["generator", "tokenizer"])
def test_a_checkpoint_goes_on_in_another_layout(tmp_path, single, metrics, stage):
    """One process, 2 x 1, 1 x 2 and one again; each begins with the state that the one before left, to the bit."""
    out = tmp_path / "run"
    alone(stage, out, {"steps": 5, "schedule": "constant"})
    assert [path.name for path in checkpoint_files(out)] == ["checkpoint.pt"]
    for size, layout, steps in ((2, (2, 1), 10), (2, (1, 2), 15)):
        before = newest(out)
        together(size, train, stage, out, layout, {"steps": before.step, "schedule": "constant"}, logs=tmp_path)
        together(size, _rewrite, stage, out, tmp_path / f"copy-{steps}", layout, logs=tmp_path)
        assert_close(newest(tmp_path / f"copy-{steps}").parts, before.parts, **EXACT)
        together(size, train, stage, out, layout, {"steps": steps, "schedule": "constant"}, logs=tmp_path)
        assert [path.name for path in checkpoint_files(out)] == [f"checkpoint-{steps:06d}.dcp"]
    alone(stage, out, {"schedule": "constant"})
    assert [path.name for path in checkpoint_files(out)] == ["checkpoint.pt"]
    alone(stage, tmp_path / "whole", {"schedule": "constant"})
    assert losses(out, metrics) == pytest.approx(losses(tmp_path / "whole", metrics), abs=1e-5)


def _rewrite(_rank: int, stage: str, out: Path, copy: Path, layout: tuple[int, int]) -> None:
    """Load the newest checkpoint of ``out`` in a layout, and write it to another folder without a step."""
    from aimamba.distributed import Team, find_place
    from aimamba.train.checkpoint import Found
    from aimamba.train.interruption import Interruption
    from aimamba.train.layout import Layout
    from aimamba.train.many import ManyRun

    place = find_place()
    path = checkpoint_files(out)[0]
    copy.mkdir(exist_ok=True)
    with Team(place, ranks_task.CPU, timeout=ranks_task.TIMEOUT) as team:
        found = Found(read_checkpoint(path, whole=False), path)
        task = ranks_task.STAGES[stage]()
        config = settings(schedule="constant")
        run = ManyRun(task, config, copy, found.checkpoint.recipe, team, Layout(*layout), Interruption(), found)
        run.save_checkpoint(last=True)


def test_the_same_layout_goes_on_bit_for_bit(tmp_path, metrics):
    together(2, train, "tokenizer", tmp_path / "whole", (1, 2), {}, logs=tmp_path)
    ranks = Ranks(2, train, "tokenizer", tmp_path / "parts", (1, 2), {}, logs=tmp_path)
    while not (tmp_path / "parts/metrics.jsonl").exists():
        time.sleep(0.05)
    ranks.kill(1, signal.SIGTERM)
    ranks.wait()
    assert ranks.codes == [143, 143], ranks.errors
    together(2, train, "tokenizer", tmp_path / "parts", (1, 2), {}, logs=tmp_path)
    whole, parts = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert_close(parts.parts, whole.parts, **EXACT)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_sigterm_to_one_process_saves_and_ends_all(tmp_path, metrics):
    ranks = Ranks(2, train, "generator", tmp_path / "run", (1, 2), {}, ranks_task.terminate, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [143, 143], ranks.errors
    assert "stopped after step 14 of 20; the same command continues" in ranks.errors[0]
    assert ranks.errors[1] == ""
    assert newest(tmp_path / "run").step == 14
    assert is_stopped(tmp_path / "run")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (ranks_task.die, "rank 0 stops: rank 1 (.*) ended or lost the connection"),
        (ranks_task.hang, "rank 0 stops: no step was finished for 5 s: rank 1 (.*) hangs"),
        (ranks_task.freeze, "rank 0 stops: rank 1 (.*) gave no sign for 5 s"),
        (ranks_task.spoil, "rank 0 stops: rank 1 (.*) ended"),
    ],
)
def test_a_lost_process_ends_all_with_a_line(tmp_path, metrics, act, said):
    out = tmp_path / "run"
    started = time.monotonic()
    ranks = Ranks(2, train, "generator", out, (1, 2), {}, act, logs=tmp_path)
    ranks.processes[0].join(60)
    ranks.kill(1) if act is ranks_task.freeze else None
    ranks.wait()
    assert time.monotonic() - started < 60
    assert ranks.codes[0] == 2
    assert ranks.codes[1] != 0
    lines = [line for line in ranks.errors[0].splitlines() if "stops" in line]
    assert len(lines) == 1
    import re

    assert re.search(said, lines[0]), lines
    assert lines[0].endswith(f"; the same command goes on from the last checkpoint in {out}")
    assert newest(out).step == 10
    together(2, train, "generator", out, (1, 2), {}, logs=tmp_path)
    assert [line["step"] for line in metrics(out, "train")] == list(range(1, 21))


def test_metrics_file_is_written_by_the_first_alone(tmp_path):
    out = tmp_path / "run"
    ranks = Ranks(2, train, "generator", out, (2, 1), {"steps": 3, "log_every": 1}, logs=tmp_path)
    ranks.wait()
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 3]
    assert "2 processes: 2 x 1 (copies x shards)" in ranks.errors[0]
    assert ranks.errors[1] == ""
    assert torch.load is not None
