"""Runs of several processes: the same steps as one process, whatever the layout; checkpoints that any layout reads."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import ranks_task
import torch
from ranks import Ranks, together
from ranks_task import alone, settings, train
from torch.testing import assert_close

from aimamba.distributed import Team, find_place
from aimamba.train.bad_batch import read_bad_batch
from aimamba.train.checkpoint import Found, read_checkpoint
from aimamba.train.checkpoint_files import checkpoint_files
from aimamba.train.fit import fit
from aimamba.train.interruption import Interruption
from aimamba.train.parallel.layout import Layout
from aimamba.train.parallel.run import ManyRun
from aimamba.train.replay import replay
from aimamba.train.stopped import is_stopped

LAYOUTS = [(2, 1), (1, 2), (2, 2)]
EXACT = {"rtol": 0, "atol": 0}
STEADY = {"schedule": "constant", "lr": 5e-4}  # at 1e-3 a latent lies between two codes, so rounding chooses


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
    changes = {"accumulation": 2, "steps": 10}
    alone("tokenizer", tmp_path / "one", changes)
    together(2, train, "tokenizer", tmp_path / "two", (1, 2), changes, logs=tmp_path)
    assert losses(tmp_path / "two", metrics) == pytest.approx(losses(tmp_path / "one", metrics), abs=1e-5)


def test_quantizers_that_ask_for_the_whole_batch(tmp_path, metrics):
    """The sums of moving averages, over parts of a batch and processes, and the entropy of the mean distribution."""
    changes = {"accumulation": 2, "steps": 6, "checkpoint_every": 6}
    options = {"adversarial_weight": 0.0, "entropy_weight": 0.5}
    together(2, ranks_task.train_quantizers, tmp_path / "two", changes, options, logs=tmp_path)
    for kind in ("ema", "lfq"):
        one, two = tmp_path / "one" / kind, tmp_path / "two" / kind
        alone("tokenizer", one, changes, {"quantizer": kind, **options})
        assert losses(two, metrics) == pytest.approx(losses(one, metrics), abs=1e-5)
        for part in ("model", "companion codebook_use"):
            assert_close(newest(two).parts[part], newest(one).parts[part], rtol=0, atol=2e-4)
    mean = losses(tmp_path / "two/lfq", metrics, "mean_entropy")
    assert mean == pytest.approx(losses(tmp_path / "one/lfq", metrics, "mean_entropy"), abs=1e-4)
    assert newest(tmp_path / "two/ema").parts["companion codebook_use"].keys() == {"use", "count", "total"}


def test_bfloat16_activation_checkpointing_and_heads_on_hidden_states(tmp_path, metrics):
    changes = {"precision": "bfloat16"}
    options = {"checkpointing": True, "rear_weight": 0.5, "code_noise": 0.2, "code_noise_until": 9}
    alone("generator", tmp_path / "one", changes, options)
    together(2, train, "generator", tmp_path / "two", (1, 2), changes, None, options, logs=tmp_path)
    for name in ("loss", "vector_recovery", "vector_prediction"):
        many, one = (losses(tmp_path / run, metrics, name) for run in ("two", "one"))
        assert many == pytest.approx(one, abs=2e-3)
    assert {"vector_heads", "vector_heads optimizer"} <= newest(tmp_path / "two").parts.keys()


def test_lora_and_frozen_weights(tmp_path, metrics):
    pytest.importorskip("peft")
    options = {"lora_rank": 2, "train": "classes"}
    alone("generator", tmp_path / "one", {}, options)
    together(2, train, "generator", tmp_path / "two", (1, 2), {}, None, options, logs=tmp_path)
    assert losses(tmp_path / "two", metrics) == pytest.approx(losses(tmp_path / "one", metrics), abs=1e-5)
    two, one = (newest(tmp_path / name).parts["average"]["model"] for name in ("two", "one"))
    assert_close(two, one, rtol=0, atol=2e-4)
    start = ranks_task.STAGES["generator"](**options).model
    for name, weight in start.named_parameters():
        assert torch.equal(two[name], weight) != weight.requires_grad, name


@pytest.mark.parametrize("stage", ["generator", "tokenizer"])
def test_a_checkpoint_goes_on_in_another_layout(tmp_path, metrics, stage):
    """One process, 2 x 1, 1 x 2 and one again; each begins with the state that the one before left, to the bit."""
    out = tmp_path / "run"
    alone(stage, out, {**STEADY, "steps": 5})
    assert [path.name for path in checkpoint_files(out)] == ["checkpoint.pt"]
    for layout, steps in (((2, 1), 10), ((1, 2), 15)):
        before, copy = newest(out), tmp_path / f"copy-{steps}"
        together(2, _copy_and_train, stage, out, copy, layout, steps, logs=tmp_path)
        assert_close(newest(copy).parts, before.parts, **EXACT)
        assert [path.name for path in checkpoint_files(out)] == [f"checkpoint-{steps:06d}.dcp"]
    alone(stage, out, STEADY)
    assert [path.name for path in checkpoint_files(out)] == ["checkpoint.pt"]
    alone(stage, tmp_path / "whole", STEADY)
    assert losses(out, metrics) == pytest.approx(losses(tmp_path / "whole", metrics), abs=1e-5)


def _copy_and_train(rank: int, stage: str, out: Path, copy: Path, layout: tuple[int, int], steps: int) -> None:
    """Load the newest checkpoint of ``out`` in a layout and write it to another folder; then train."""
    path = checkpoint_files(out)[0]
    copy.mkdir(exist_ok=True)
    config = settings(**STEADY, steps=steps)
    with Team(find_place(), ranks_task.CPU, timeout=ranks_task.TIMEOUT) as team:
        found = Found(read_checkpoint(path, whole=False), path)
        recipe = found.checkpoint.recipe
        task = ranks_task.STAGES[stage]()
        run = ManyRun(task, config, copy, recipe, team, Layout(*layout), Interruption(), found)
        run.save_checkpoint(last=True)
        fit(ranks_task.STAGES[stage](), config, out, team=team, layout=Layout(*layout))


def test_sigterm_to_one_process_ends_all_and_the_same_layout_goes_on_bit_for_bit(tmp_path, metrics):
    together(2, train, "generator", tmp_path / "whole", (1, 2), {}, logs=tmp_path)
    ranks = Ranks(2, train, "generator", tmp_path / "parts", (1, 2), {}, ranks_task.terminate, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [143, 143], ranks.errors
    assert "stopped after step 14 of 20; the same command continues" in ranks.errors[0]
    assert ranks.errors[1] == ""
    assert newest(tmp_path / "parts").step == 14
    assert is_stopped(tmp_path / "parts")
    together(2, train, "generator", tmp_path / "parts", (1, 2), {}, logs=tmp_path)
    assert_close(newest(tmp_path / "parts").parts, newest(tmp_path / "whole").parts, **EXACT)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("slow", [0, 1])
def test_a_process_that_is_slow_to_end_after_a_signal_is_not_told_that_another_is_lost(tmp_path, slow):
    ranks = Ranks(2, _train_and_end_late, tmp_path / "run", slow, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [143, 143], ranks.errors
    assert "stopped after step 14 of 20; the same command continues" in ranks.errors[0]
    assert "stops: " not in ranks.errors[0]
    assert ranks.errors[1] == ""


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "ended or lost the connection"), (signal.SIGSTOP, "gave no sign for 5 s")]
)
def test_a_process_that_is_lost_when_all_is_done_is_named(tmp_path, number, said):
    ranks = Ranks(2, _train_and_stop, tmp_path / "run", number, logs=tmp_path)
    ranks.processes[0].join(60)
    if number == signal.SIGSTOP:
        ranks.kill(1)
    ranks.wait()
    assert ranks.codes == [2, -signal.SIGKILL], ranks.errors
    [line] = [line for line in ranks.errors[0].splitlines() if line.startswith("aimamba: rank 0 stops")]
    assert re.match(rf"aimamba: rank 0 stops: rank 1 \(.*\) {said}; the same command goes on from", line)
    assert "Traceback" not in ranks.errors[0]
    assert newest(tmp_path / "run").step == 20


def _train_and_stop(rank: int, out: Path, number: int) -> None:
    train_as_before = ManyRun.train

    def train_and_stop(run: ManyRun, *arguments) -> None:
        train_as_before(run, *arguments)
        if rank == 1:
            os.kill(os.getpid(), number)

    ManyRun.train = train_and_stop
    train(rank, "generator", out, (1, 2), {})


def _train_and_end_late(rank: int, out: Path, slow: int) -> None:
    """Get SIGTERM, and take longer than two looks of the watch between the last checkpoint and the end."""
    train_as_before = ManyRun.train

    def train_and_wait(run: ManyRun, *arguments) -> None:
        try:
            train_as_before(run, *arguments)
        finally:
            time.sleep(4.0 if rank == slow else 0.0)

    ManyRun.train = train_and_wait
    train(rank, "generator", out, (1, 2), {}, ranks_task.terminate)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (ranks_task.die, r"rank 1 \(.*\) ended or lost the connection"),
        (ranks_task.spoil, r"rank 1 \(.*\) ended( or lost the connection)?"),
        (ranks_task.freeze, r"rank 1 \(.*\) gave no sign for 5 s"),
        (ranks_task.hang, r"no step was finished for \d+ s: a process hangs, and it is not known which"),
        (ranks_task.hang_reading, r"no step was finished for \d+ s: rank 1 \(.*\) hangs"),
    ],
)
def test_a_lost_process_ends_all_with_a_line(tmp_path, metrics, act, said):
    out = tmp_path / "run"
    ranks = Ranks(2, train, "generator", out, (1, 2), {}, act, logs=tmp_path)
    ranks.processes[0].join(60)
    assert ranks.codes[0] == 2
    if act is ranks_task.freeze:
        ranks.kill(1)
    ranks.wait()
    assert ranks.codes[1] != 0
    [line] = [line for line in ranks.errors[0].splitlines() if "stops" in line]
    advice = re.escape(f"the same command goes on from the last checkpoint in {out}")
    assert re.fullmatch(f"aimamba: rank 0 stops: {said}; {advice}", line)
    if act in (ranks_task.hang, ranks_task.hang_reading):
        assert "rank 1 stops: " in ranks.errors[1], "the store is in rank 0, which may have ended a moment before"
    assert newest(out).step == 10
    if act is ranks_task.die:
        together(2, train, "generator", out, (1, 2), {}, logs=tmp_path)
        assert [line["step"] for line in metrics(out, "train")] == list(range(1, 21))


def test_blocks_are_compiled(tmp_path, metrics):
    changes = {"steps": 4, "evaluate_every": 0, "checkpoint_every": 0}
    together(2, ranks_task.train_compiled, "generator", tmp_path / "two", (1, 2), {**changes, "compile": "blocks"},
             logs=tmp_path)  # fmt: skip
    alone("generator", tmp_path / "one", changes)
    assert losses(tmp_path / "two", metrics) == pytest.approx(losses(tmp_path / "one", metrics), abs=1e-5)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path):
    out = tmp_path / "run"
    changes = {"steps": 10, "checkpoint_every": 5, "checkpoints": 2, "schedule": "constant"}
    together(2, train, "generator", out, (1, 2), changes, logs=tmp_path)
    assert [path.name for path in checkpoint_files(out)] == ["checkpoint-000010.dcp", "checkpoint-000005.dcp"]
    shard = out / "checkpoint-000010.dcp/__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    ranks = Ranks(2, train, "generator", out, (2, 1), {**changes, "steps": 12}, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [0, 0], ranks.errors
    damaged = f"{out}/checkpoint-000010.dcp is damaged: the checksum of __1_0.distcp does not match"
    assert f"{damaged}; going on from checkpoint-000005.dcp, after step 5" in ranks.errors[0]
    assert [path.name for path in checkpoint_files(out)] == ["checkpoint-000012.dcp", "checkpoint-000010.dcp"]


def test_a_failed_write_ends_all_and_leaves_the_old_checkpoint(tmp_path):
    out = tmp_path / "run"
    ranks = Ranks(2, _train_on_a_full_disk, out, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [1, 1], ranks.errors
    said = r"OSError: \[Errno 28\] No space left on device \([\d,.]+ (bytes|MB) needed, [\d,.]+ MB free\)"
    assert all(re.search(said, error) for error in ranks.errors)
    assert newest(out).step == 5
    assert not (out / "checkpoint.dcp.partial").exists()


def _train_on_a_full_disk(rank: int, out: Path) -> None:
    import errno

    from aimamba.train.parallel import checkpoint as sharded

    kept = sharded.FileSystemWriter.write_data

    def write_data(writer, *arguments):
        if rank == 1 and (out / "checkpoint-000005.dcp").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return kept(writer, *arguments)

    sharded.FileSystemWriter.write_data = write_data
    train(rank, "generator", out, (1, 2), {"checkpoint_every": 5, "schedule": "constant"})


def test_kill_9_before_a_checkpoint_has_its_name(tmp_path):
    out = tmp_path / "run"
    ranks = Ranks(2, _train_and_die_in_a_checkpoint, out, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [-signal.SIGKILL, 2]
    assert (out / "checkpoint.dcp.partial/state.json").exists()
    assert newest(out).step == 5
    together(2, train, "generator", out, (1, 2), {"checkpoint_every": 5}, logs=tmp_path)
    together(2, train, "generator", tmp_path / "whole", (1, 2), {"checkpoint_every": 5}, logs=tmp_path)
    assert_close(newest(out).parts, newest(tmp_path / "whole").parts, **EXACT)
    assert not (out / "checkpoint.dcp.partial").exists()


def _train_and_die_in_a_checkpoint(rank: int, out: Path) -> None:
    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        if path.name == "checkpoint.dcp.partial" and target.name == "checkpoint-000010.dcp":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = die
    train(rank, "generator", out, (1, 2), {"checkpoint_every": 5})


def test_a_loss_of_one_process_that_is_not_finite_skips_the_step_in_all(tmp_path, metrics):
    out = tmp_path / "run"
    ranks = Ranks(2, train, "generator", out, (1, 2), {"checkpoint_every": 5}, ranks_task.poison, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [2, 2], ranks.errors
    assert ranks.errors[0].count("is skipped: its loss is nan") == 6
    [line] = [line for line in ranks.errors[0].splitlines() if line.startswith("aimamba: ")]
    assert "step 10 is the 5th skipped step in a row" in line
    assert f"and 5 more, saved with the weights in {out / 'bad-batch.pt'}; lower" in line
    assert ranks.errors[1] == ""
    assert [entry["step"] for entry in metrics(out, "train") if entry.get("skipped") == 1.0] == [3, 6, 7, 8, 9]
    bad, task = read_bad_batch(out / "bad-batch.pt"), ranks_task.Generator()
    [batch] = bad.batch
    whole = next(task.batches(9 * 8, 8))
    assert [tensor.tolist() for tensor in batch] == [tensor.tolist() for tensor in whole]
    assert_close(bad.weights["model"], newest(out).parts["model"], **EXACT)
    again = replay(bad, task)
    assert (again.not_finite, len(again.alone)) == ((), 8), "the loss itself is sound"


def test_a_wrong_setting_is_told_by_the_first_process(tmp_path):
    out = tmp_path / "run"
    together(2, train, "generator", out, (2, 1), {"steps": 2}, logs=tmp_path)
    ranks = Ranks(2, train, "generator", out, (2, 1), {"steps": 4, "lr": 0.5}, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [2, 2]
    assert "holds a run with fit.lr 0.001, now it is 0.5; set it back" in ranks.errors[0]
    assert ranks.errors[1] == ""
    assert "2 processes: 2 x 1 (copies x shards)" not in ranks.errors[0]
