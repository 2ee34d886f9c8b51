import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from toy_task import ToyTask, settings

from aimamba.config import from_mapping
from aimamba.errors import CheckpointError, ConfigError
from aimamba.signals import STOPPING
from aimamba.train.checkpoint import read_checkpoint
from aimamba.train.fit import FitConfig, fit
from aimamba.train.interruption import Interrupted

RECIPE = {"stage": "toy", "data": {"size": 4}}


def assert_same_run(one: Path, other: Path, metrics) -> None:
    """Check that two runs are the same bit for bit, except for timings."""
    first, second = read_checkpoint(one / "checkpoint.pt"), read_checkpoint(other / "checkpoint.pt")
    assert (first.step, first.recipe) == (second.step, second.recipe)
    torch.testing.assert_close(first.parts, second.parts, rtol=0, atol=0)
    torch.testing.assert_close(
        torch.load(one / "model/weights.pt"), torch.load(other / "model/weights.pt"), rtol=0, atol=0
    )
    assert metrics(one) == metrics(other)


class Stack(torch.nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of six steps without an interruption."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(ToyTask(), settings(), out, recipe=RECIPE)
    return out


@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_is_compiled_on_request(tmp_path, monkeypatch, compiled):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: asked.append((module, options)))
    task = ToyTask()
    fit(task, settings(steps=1, compile=compiled), tmp_path / "run", recipe=RECIPE)
    assert asked == ([(task.model, {"dynamic": False})] if compiled else [])


def test_blocks_are_compiled_one_by_one(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: asked.append((module, options)))
    task = ToyTask()
    task.model = Stack([task.model[:2], task.model[2:]])
    fit(task, settings(steps=1, compile="blocks"), tmp_path / "run", recipe=RECIPE)
    assert asked == [(block, {"dynamic": False}) for block in task.model.blocks]


def test_a_model_without_blocks_cannot_be_compiled_by_them(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^fit.compile = 'blocks' needs a model that is made of blocks; set it to true or false$"
    ):
        fit(ToyTask(), settings(steps=1, compile="blocks"), tmp_path / "run", recipe=RECIPE)
    assert not (tmp_path / "run").exists()


def test_the_files_of_a_run(whole, metrics):
    assert {path.name for path in whole.iterdir()} == {
        "recipe.toml", "metrics.jsonl", "checkpoint.pt", "sheets", "model", "model-last",
    }  # fmt: skip
    assert sorted(path.name for path in (whole / "sheets").iterdir()) == ["step-000003.png", "step-000006.png"]
    recipe = tomllib.loads((whole / "recipe.toml").read_text())
    assert recipe["data"] == {"size": 4}
    assert from_mapping(FitConfig, recipe["fit"], where="recipe") == settings()
    assert (whole / "model/recipe.toml").read_text() == (whole / "recipe.toml").read_text()
    assert [(line["step"], line["split"]) for line in metrics(whole)] == [
        (3, "held-out"), (4, "train"), (6, "train"), (6, "held-out"),
    ]  # fmt: skip
    train = metrics(whole)[1]
    assert train.keys() == {"step", "split", "loss", "gradient_norm", "kept", "one", "lr"}
    assert train["one"] == 1.0
    assert 0 < train["kept"] < 1


def test_speed_and_time_are_measured_and_continue_with_the_run(tmp_path, monkeypatch):
    clock = itertools.count(step=0.5)  # half a second from the beginning of a step to its end
    monkeypatch.setattr("aimamba.train.run.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    fit(ToyTask(), settings(log_every=2), tmp_path)
    fit(ToyTask(), settings(log_every=2, steps=8), tmp_path)
    read = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    timings = [
        (line["step"], line["seconds"], line["pictures_per_second"]) for line in read if line["split"] == "train"
    ]
    assert timings == [(2, 1.0, 8.0), (4, 2.0, 8.0), (6, 3.0, 8.0), (8, 4.0, 8.0)]


def test_training_learns_and_keeps_the_average(tmp_path, metrics):
    task = ToyTask()
    result = fit(task, settings(steps=60, lr=0.02, log_every=20, keep="last"), tmp_path)
    losses = [line["loss"] for line in metrics(tmp_path) if line["split"] == "train"]
    assert losses[-1] < losses[0]
    kept = torch.load(result.model / "weights.pt")
    assert not torch.equal(kept["0.weight"], task.model.state_dict()["0.weight"])
    average = read_checkpoint(tmp_path / "checkpoint.pt").parts["average"]["model"]
    torch.testing.assert_close(kept, average, rtol=0, atol=0)
    assert result.metrics == {"loss": metrics(tmp_path)[-1]["loss"]}
    assert result.steps == 60


def test_without_an_average_the_model_itself_is_kept(tmp_path):
    task = ToyTask()
    result = fit(task, settings(ema_decay=0.0, keep="last"), tmp_path)
    torch.testing.assert_close(torch.load(result.model / "weights.pt"), dict(task.model.state_dict()), rtol=0, atol=0)
    assert task.model.training


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("step", [3, 4])
def test_a_signal_ends_the_step_and_the_same_command_continues(tmp_path, whole, number, step, metrics):
    def interrupt(at: int) -> float:
        if at == step:
            os.kill(os.getpid(), number)
        return 1.0

    handlers = [signal.getsignal(each) for each in STOPPING]
    with pytest.raises(Interrupted, match=f"stopped after step {step} of 6; the same command continues") as stopped:
        fit(ToyTask(interrupt), settings(), tmp_path, recipe=RECIPE)
    assert stopped.value.exit_code == 128 + number
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert [signal.getsignal(each) for each in STOPPING] == handlers
    assert not (tmp_path / "model").exists()

    task = ToyTask()
    fit(task, settings(), tmp_path, recipe=RECIPE)
    assert task.positions == list(range(4 * step, 24, 4))
    assert_same_run(tmp_path, whole, metrics)


def test_a_second_ctrl_c_ends_at_once_and_leaves_the_last_checkpoint(tmp_path, whole, metrics):
    def interrupt(at: int) -> float:
        for _ in range(2 if at == 6 else 0):
            signal.raise_signal(signal.SIGINT)  # each is handled before the next, unlike two of os.kill
        return 1.0

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(ToyTask(interrupt), settings(), tmp_path, recipe=RECIPE)
    assert not isinstance(stopped.value, Interrupted)
    assert read_checkpoint(tmp_path / "checkpoint.pt").step == 4
    assert not (tmp_path / ".lock").exists()
    fit(ToyTask(), settings(), tmp_path, recipe=RECIPE)
    assert_same_run(tmp_path, whole, metrics)


@pytest.mark.parametrize(("how", "number", "left"), [("--die-in-step", 6, 4), ("--die-in-write", 4, 2)])
def test_kill_9_and_the_same_command_continues(tmp_path, how, number, left, metrics):
    program = [sys.executable, str(Path(__file__).with_name("toy_task.py"))]
    killed = subprocess.run([*program, str(tmp_path / "killed"), how, str(number)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_checkpoint(tmp_path / "killed/checkpoint.pt").step == left
    fit(ToyTask(), settings(), tmp_path / "killed")
    fit(ToyTask(), settings(), tmp_path / "whole")
    assert_same_run(tmp_path / "killed", tmp_path / "whole", metrics)


def test_a_run_killed_before_its_model_was_kept_keeps_it_when_run_again(tmp_path, whole, monkeypatch, metrics):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(ToyTask, "save", fail)
    with pytest.raises(MemoryError):
        fit(ToyTask(), settings(), tmp_path, recipe=RECIPE)
    monkeypatch.undo()
    task = ToyTask()
    fit(task, settings(), tmp_path, recipe=RECIPE)
    assert task.positions == []
    assert_same_run(tmp_path, whole, metrics)


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    first = fit(ToyTask(), settings(), tmp_path)
    task = ToyTask()
    again = fit(task, settings(log_every=1, sheet_every=1), tmp_path)
    assert again == first
    assert task.positions == []
    assert "is finished: 6 steps" in capsys.readouterr().err
    (tmp_path / "checkpoint.pt").unlink()
    assert fit(task, settings(), tmp_path) == first
    with pytest.raises(ConfigError, match=r"no checkpoint\.pt to train on from"):
        fit(task, settings(steps=9), tmp_path)


def test_a_finished_run_can_be_extended(tmp_path):
    fit(ToyTask(), settings(schedule="constant"), tmp_path / "extended")
    task = ToyTask()
    result = fit(task, settings(schedule="constant", steps=9), tmp_path / "extended")
    assert task.positions == [24, 28, 32]
    fit(ToyTask(), settings(schedule="constant", steps=9), tmp_path / "whole")
    torch.testing.assert_close(
        torch.load(result.model / "weights.pt"), torch.load(tmp_path / "whole/model/weights.pt"), rtol=0, atol=0
    )
    with pytest.raises(ConfigError, match=r"has taken 9 steps, more than fit\.steps = 7"):
        fit(task, settings(schedule="constant", steps=7), tmp_path / "extended")


def test_another_recipe_is_refused_by_its_first_difference(whole):
    with pytest.raises(ConfigError, match=r"data\.size 4, now it is 8; set it back, or give another --out"):
        fit(ToyTask(), settings(), whole, recipe={"stage": "toy", "data": {"size": 8}})
    with pytest.raises(ConfigError, match=r"fit\.lr 0\.05, now it is 0\.1"):
        fit(ToyTask(), settings(lr=0.1), whole, recipe=RECIPE)
    with pytest.raises(ConfigError, match=r"data\.flip not set, now it is True"):
        fit(ToyTask(), settings(), whole, recipe={"stage": "toy", "data": {"size": 4, "flip": True}})


def test_a_run_continues_only_with_the_inputs_it_began_with(tmp_path, monkeypatch):
    fit(ToyTask(), settings(), tmp_path)
    monkeypatch.setattr(ToyTask, "basis", lambda self: {"table of sums": "cd" * 32})
    with pytest.raises(ConfigError, match=r"another table of sums \(abababababab\) than the one given \(cdcdcdcdcdcd"):
        fit(ToyTask(), settings(steps=9), tmp_path)


def test_recipes_are_compared_with_their_defaults_filled_in(tmp_path):
    def resolve(recipe):
        return {**recipe, "data": {"flip": False, **recipe["data"]}}

    fit(ToyTask(), settings(), tmp_path, recipe=RECIPE)
    later = {"stage": "toy", "data": {"size": 4, "flip": False}}
    task = ToyTask()
    fit(task, settings(), tmp_path, recipe=later, resolve=resolve)
    assert task.positions == [], "it is finished"
    fit(task, settings(steps=9), tmp_path, recipe=later, resolve=resolve)
    assert task.positions == [24, 28, 32]
    with pytest.raises(ConfigError, match=r"data\.flip False, now it is True"):
        fit(task, settings(), tmp_path, recipe={**later, "data": {"size": 4, "flip": True}}, resolve=resolve)


def test_another_recipe_is_refused_before_anything_is_prepared(whole, tmp_path):
    with pytest.raises(Interrupted):
        fit(ToyTask(lambda step: os.kill(os.getpid(), signal.SIGTERM) or 1.0), settings(), tmp_path)
    with pytest.raises(ConfigError, match=r"fit\.lr 0\.05, now it is 0\.1"):
        fit(lambda: pytest.fail("prepared"), settings(lr=0.1), tmp_path)


def test_a_folder_called_model_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="would be replaced; give another --out"):
        fit(ToyTask(), settings(), tmp_path)


def test_a_truncated_checkpoint_is_an_error_that_says_how_to_fix_it(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(ToyTask(lambda step: os.kill(os.getpid(), signal.SIGTERM) or 1.0), settings(), out)
    path = out / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cut short; delete checkpoint\.pt to start over, or give another --out"):
        fit(ToyTask(), settings(), out)


def test_after_a_damaged_checkpoint_an_older_one_gives_the_same_run(tmp_path, whole, metrics):
    def interrupt(at: int) -> float:
        if at == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    out, several = tmp_path / "run", settings(checkpoints=3)
    with pytest.raises(Interrupted):
        fit(ToyTask(interrupt), several, out, recipe=RECIPE)
    (out / "checkpoint.pt").write_bytes(b"")
    task = ToyTask()
    fit(task, several, out, recipe=RECIPE)
    assert task.positions[0] == 16
    names = sorted(path.name for path in out.glob("checkpoint*"))
    assert names == ["checkpoint-000002.pt", "checkpoint-000004.pt", "checkpoint.pt"]
    parts = (read_checkpoint(folder / "checkpoint.pt").parts for folder in (out, whole))
    torch.testing.assert_close(*parts, rtol=0, atol=0)
    assert metrics(out) == metrics(whole)


def test_a_step_with_a_loss_that_is_not_finite_is_skipped(tmp_path, capsys, metrics):
    task = ToyTask()
    before = {}

    def watch(step: int) -> float:
        before[step] = task.model.state_dict()["0.weight"].clone()
        return math.nan if step == 2 else 1.0

    task.before_step = watch
    fit(task, settings(log_every=1), tmp_path)
    assert torch.equal(before[3], before[2])
    assert not torch.equal(before[4], before[3])
    assert "step 2 is skipped: its loss is nan" in capsys.readouterr().err
    second = next(line for line in metrics(tmp_path) if line["step"] == 2)
    assert "loss" not in second
    assert read_checkpoint(tmp_path / "checkpoint.pt").parts["average"]["updates"] == 5


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(tmp_path):
    task = ToyTask()
    task.model[0].weight.register_hook(lambda gradient: gradient * (math.inf if task.step == 2 else 1.0))
    fit(task, settings(), tmp_path)
    assert all(bool(parameter.isfinite().all()) for parameter in task.model.parameters())
    assert read_checkpoint(tmp_path / "checkpoint.pt").parts["average"]["updates"] == 5


def test_five_bad_steps_in_a_row_end_the_run(tmp_path):
    bad = {1, 2, 3, 4, 6, 7, 8, 9, 10}
    task = ToyTask(lambda step: math.inf if step in bad else 1.0)
    with pytest.raises(
        ConfigError, match=r"step 10 is the 5th skipped step in a row: .* loss is inf.* lower fit\.lr = 0\.05"
    ):
        fit(task, settings(steps=20), tmp_path)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, monkeypatch):
    def loss(self, model, batch, rng, step):
        return (model[3](batch.x.repeat(1, 2)) - batch.y).square().mean(), {}

    monkeypatch.setattr(ToyTask, "loss", loss)
    tasks = ToyTask(), ToyTask()
    for task, parts in zip(tasks, (1, 2), strict=True):
        fit(task, settings(accumulation=parts), tmp_path / str(parts))
    assert tasks[0].positions == list(range(0, 24, 4))
    assert tasks[1].positions == list(range(0, 24, 2))
    torch.testing.assert_close(tasks[0].model.state_dict(), tasks[1].model.state_dict())


def test_clipping_bounds_the_gradient_but_reports_its_length(tmp_path, metrics):
    """The optimiser, which clips, leaves gradients as it has used them."""
    norms: list[float] = []

    def watch(optimizer, *_):
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    watching = register_optimizer_step_post_hook(watch)
    try:
        fit(ToyTask(lambda step: 1000.0), settings(clip_norm=0.5), tmp_path)
    finally:
        watching.remove()
    assert norms == pytest.approx([0.5] * 6, rel=1e-4)
    assert all(line["gradient_norm"] > 1 for line in metrics(tmp_path) if line["split"] == "train")


@pytest.fixture
def outputs(monkeypatch) -> set[torch.dtype]:
    """The dtypes of the toy model's outputs while it is trained."""
    seen = set()

    def loss(self, model, batch, rng, step):
        output = model(batch.x)
        seen.add(output.dtype)
        return (output.float() - batch.y).square().mean(), {}

    monkeypatch.setattr(ToyTask, "loss", loss)
    return seen


def test_bfloat16_runs_the_forward_pass_only(tmp_path, outputs):
    task = ToyTask()
    fit(task, settings(precision="bfloat16"), tmp_path)
    assert outputs == {torch.bfloat16}
    assert {parameter.dtype for parameter in task.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("pays", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_that_is_faster(tmp_path, monkeypatch, capsys, outputs, pays, dtype):
    monkeypatch.setattr("aimamba.train.run.bfloat16_pays", lambda device: pays)
    fit(ToyTask(), settings(precision="auto"), tmp_path)
    assert outputs == {getattr(torch, dtype)}
    assert f"training in {dtype}, chosen by fit.precision = 'auto'" in capsys.readouterr().err


def test_the_randomness_of_a_step_depends_on_all_bits_of_the_seed():
    from aimamba.train.step import step_generator

    seeds = [1, *(1 + 2**bit for bit in range(32, 64))]
    found = {tuple(torch.rand(4, generator=step_generator(seed, 3, torch.device("cpu"))).tolist()) for seed in seeds}
    assert len(found) == len(seeds)
