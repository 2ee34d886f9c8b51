"""One training step: how often it waits, as it is written and as a CUDA graph, and batches that are moved ahead.

Without a device, recording is replaced by calling the step again.
"""

import math
from dataclasses import replace
from itertools import islice, pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from toy_task import ToyTask, settings

from aimamba.data.codes import CodeBatch
from aimamba.errors import ConfigError
from aimamba.train import step as steps
from aimamba.train.ahead import Ahead
from aimamba.train.checkpoint import read_checkpoint
from aimamba.train.ema import ExponentialAverage
from aimamba.train.fit import FitConfig, fit
from aimamba.train.generator import code_cross_entropy
from aimamba.train.interruption import Interrupted
from aimamba.train.optim import Learner, adamw
from aimamba.train.step import RecordedStep, TrainingStep, is_recorded
from refusals import one_line_error
from waiting import counted_waits

CONFIG = FitConfig(steps=8, batch_size=4, lr=0.01)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Recorder:
    """In place of a CUDA graph: takes the step again, with gradients that begin anew, as in a recording."""

    def __init__(self, task):
        self.recorded, self.replayed, self.task = 0, 0, task

    def __call__(self, run, rng, warm_up=0):
        self.recorded += 1

        def replay():
            self.replayed += 1
            self.task.model.zero_grad(set_to_none=True)
            return run()

        return replay


@pytest.fixture
def recorded(monkeypatch):
    """Let ``fit.cuda_graph`` run on the CPU; return a function that makes the recorder of a task."""

    def use(task):
        recorder = Recorder(task)
        monkeypatch.setattr(steps, "capture", recorder)
        monkeypatch.setattr("aimamba.train.step.check_recordable", lambda *_: None)
        return recorder

    return use


def state_of(out):
    found = read_checkpoint(out / "checkpoint.pt")
    return found.step, found.parts


@pytest.mark.parametrize("bad", [None, 2, 5])
def test_a_recorded_run_is_the_run_as_it_is_written(tmp_path, recorded, metrics, bad):
    """With a step that is skipped, before the recording or after it."""

    def before_step(step):
        return math.nan if step == bad else 1.0

    fit(ToyTask(before_step), settings(), tmp_path / "plain")
    task = ToyTask(before_step)
    recorder = recorded(task)
    fit(task, settings(cuda_graph=True), tmp_path / "recorded")
    assert (recorder.recorded, recorder.replayed) == (1, 4)
    assert_close(state_of(tmp_path / "recorded"), state_of(tmp_path / "plain"), rtol=1e-6, atol=1e-6)
    for split in ("train", "held-out"):
        assert_close(metrics(tmp_path / "recorded", split), metrics(tmp_path / "plain", split), rtol=1e-5, atol=1e-5)


def test_a_recorded_run_continues(tmp_path, recorded):
    task = ToyTask()
    recorded(task)
    fit(task, settings(cuda_graph=True), tmp_path / "whole")
    out = tmp_path / "halves"

    def stop(step):
        if step == 4:
            raise Interrupted("stopped", 2)
        return 1.0

    task = ToyTask(stop)
    recorded(task)
    with pytest.raises(Interrupted):
        fit(task, settings(cuda_graph=True), out)
    assert state_of(out)[0] == 2
    task = ToyTask()
    recorder = recorded(task)
    fit(task, settings(cuda_graph=True), out)
    assert (recorder.recorded, recorder.replayed) == (1, 2), "two steps before it"
    assert_close(state_of(out), state_of(tmp_path / "whole"), rtol=0, atol=0)
    group = state_of(out)[1]["optimizer"]["param_groups"][0]
    assert isinstance(group["lr"], float)
    assert group["capturable"] is False


class Codes(ToyTask):
    """A generator whose labels are dropped at random."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def loss(self, model, batch, rng, step):
        dropped = torch.rand(batch.labels.shape, generator=rng, device=batch.labels.device) < 0.5
        labels = torch.where(dropped, model.condition.null_class, batch.labels)
        return code_cross_entropy(model, batch.codes, labels), {"dropped": dropped.float().mean()}


def make_step(kind, model, device="cpu", config=CONFIG, **options):
    model = model.to(device).train()
    optimizer = adamw(model, lr=CONFIG.lr, betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)
    learners = [Learner(model, optimizer, CONFIG.lr)]
    return kind(Codes(model).loss, model, learners, config, torch.device(device), "float32", **options)


def batch_of(step, device="cpu", images=4):
    generator = torch.Generator().manual_seed(step)
    codes, labels = (
        torch.randint(24, (images, 9), generator=generator),
        torch.randint(5, (images,), generator=generator),
    )
    return CodeBatch(codes.to(device), labels.to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_recorded_step_gives_what_the_written_one_gives(make_aim, device, checkpointing, monkeypatch):
    if checkpointing:
        plain = code_cross_entropy
        monkeypatch.setattr(f"{__name__}.code_cross_entropy", lambda *inputs: plain(*inputs, checkpointing=True))
    written = make_step(TrainingStep, make_aim(), device=device)
    model = make_aim()
    options = {} if device == "cuda" else {"record": Recorder(SimpleNamespace(model=model))}
    replayed = make_step(RecordedStep, model, device=device, **options)
    for number in range(6):
        batch, lr = batch_of(number, device), 0.01 / (1 + number)
        wanted, (wanted_report,) = written.take([batch], number, lr)
        found, (report,) = replayed.take([batch], number, lr)
        assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        assert float(report["dropped"]) == float(wanted_report["dropped"]), "the same random numbers"
    for ours, theirs in zip(replayed.model.parameters(), written.model.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [TrainingStep, RecordedStep])
def test_a_step_that_is_not_finite_changes_nothing(make_aim, device, kind):
    model = make_aim()
    options = {"record": Recorder(SimpleNamespace(model=model))} if kind is RecordedStep and device == "cpu" else {}
    step = make_step(kind, model, device=device, **options)
    for number in range(4):
        step.take([batch_of(number, device)], number, 0.01)
    bias = model.final_adaln.bias
    kept, before = float(bias.detach()[0]), [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        bias[0] = math.nan
    values, _ = step.take([batch_of(4, device)], 4, 0.01)
    assert not values.isfinite().all()
    with torch.no_grad():
        bias[0] = kept
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    counts = {float(state["step"]) for state in step.learners[0].optimizer.state.values()}
    assert counts == {4.0}
    values, _ = step.take([batch_of(5, device)], 5, 0.01)
    assert values.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [TrainingStep, RecordedStep])
def test_the_average_moves_inside_the_step(make_aim, device, kind):
    """So it is recorded with it, and a step that is not finite does not move it."""
    model = make_aim().to(device)
    options = {"record": Recorder(SimpleNamespace(model=model))} if kind is RecordedStep and device == "cpu" else {}
    average = ExponentialAverage(model, decay=0.9)
    step = make_step(kind, model, device=device, average=average, **options)
    expected = {name: tensor.clone() for name, tensor in average.model.named_parameters()}
    for number in range(6):
        bad, bias = number == 4, model.final_adaln.bias
        kept = bias.detach().clone()
        if bad:
            with torch.no_grad():
                bias[0] = math.nan
        before = {name: tensor.clone() for name, tensor in average.model.named_parameters()}
        step.take([batch_of(number, device)], number, 0.01)
        if bad:
            with torch.no_grad():
                bias.copy_(kept)
            assert all(torch.equal(tensor, before[name]) for name, tensor in average.model.named_parameters())
            continue
        share = 1 - min(0.9, (1 + average.updates) / (10 + average.updates))
        average.updates += 1
        for name, weight in model.named_parameters():
            expected[name].lerp_(weight.detach(), share)
            assert_close(average.model.get_parameter(name), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "made",
    [
        {}, {"adaln": "none"}, {"adaln": "block"}, {"adaln": "single"}, {"mixer": "mamba3"},
        {"mixer": "gated-deltanet"}, {"mixer": "attention", "positions": "rope"},
    ],
    ids=str,
)  # fmt: skip
def test_no_step_waits_for_the_device_and_reading_its_loss_does_once(make_aim, device, monkeypatch, made):
    if device == "cpu":  # the sliced form reads the factor of a gradient where that is no wait

        def whole(model, codes, labels):
            return torch.nn.functional.cross_entropy(model(codes[:, :-1], labels).mT, codes)

        monkeypatch.setattr(f"{__name__}.code_cross_entropy", whole)
    model = make_aim(**made)
    step = make_step(TrainingStep, model, device=device, average=ExponentialAverage(model.to(device), 0.9))
    step.take([batch_of(0, device)], 0, 0.01)
    batch = batch_of(1, device)
    with counted_waits(device) as waits:
        values, _ = step.take([batch], 1, 0.01)
    assert waits == []
    with counted_waits(device) as waits:
        values.tolist()
    assert len(waits) == 1


def test_a_run_waits_once_a_step(tmp_path, monkeypatch):
    """Between two lines of metrics; the task itself does not wait."""
    waits = []

    def before_step(step):
        waits.append(len(found))
        return 1.0

    with counted_waits() as found:
        fit(ToyTask(before_step), settings(evaluate_every=0, sheet_every=0, checkpoint_every=0), tmp_path)
    steps = [later - earlier for earlier, later in pairwise(waits)]
    assert [count for number, count in enumerate(steps, start=1) if number % 4] == [1] * 4, found


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_moved_ahead(device):
    read = []

    def batches():
        for number in range(4):
            read.append(number)
            yield batch_of(number)
        raise ConfigError("the disk is gone")

    ahead = Ahead(batches(), torch.device(device))
    for number in range(4):
        found, wanted = next(ahead), batch_of(number)
        assert isinstance(found, CodeBatch)
        assert found.codes.device.type == device
        assert torch.equal(found.codes.cpu(), wanted.codes)
        assert torch.equal(found.labels.cpu(), wanted.labels)
        ahead.fetch()
        ahead.fetch()
        assert read == list(range(min(number + (2 if device == "cuda" else 1), 4)))
    with pytest.raises(ConfigError, match="the disk is gone"):
        next(ahead)
    assert list(islice(Ahead(iter([batch_of(0)]), torch.device(device)), 1))


def test_what_cannot_be_recorded_is_refused(tmp_path, make_aim):
    with one_line_error(ConfigError, r"fit\.cuda_graph needs a CUDA device, and the run is on cpu; set it to false"):
        fit(ToyTask(), settings(cuda_graph=True), tmp_path)
    with one_line_error(ConfigError, r"fit\.cuda_graph replays one step, and the steps of this stage differ"):
        steps.check_recordable(ToyTask(), torch.device("cuda"))
    with one_line_error(ConfigError, r"fit\.cuda_graph records a batch in one part, got fit\.accumulation = 2"):
        settings(cuda_graph=True, accumulation=2)
    asked = replace(CONFIG, cuda_graph=True)
    step = make_step(RecordedStep, make_aim(), config=asked, record=lambda run, rng: run)
    step.take([batch_of(0)], 0, 0.01)
    with one_line_error(ConfigError, r"fit\.cuda_graph needs batches of one shape, got .*\(3, 9\).* after .*\(4, 9\)"):
        step.take([batch_of(1, images=3)], 1, 0.01)
    step = make_step(RecordedStep, make_aim(), config=asked, record=refused)
    for number in range(2):
        step.take([batch_of(number)], number, 0.01)
    with one_line_error(ConfigError, r"cannot be recorded \(CUDA error: operation not permitted .* is capturing\)"):
        step.take([batch_of(2)], 2, 0.01)


def refused(run, rng):
    torch.rand(99, generator=rng)  # as after a recording that was begun
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand a page more")


@pytest.mark.parametrize("refuses", [False, True])
def test_by_default_what_cannot_be_recorded_is_taken_as_written(make_aim, caplog, refuses):
    model, images = make_aim(), [4, 4, 4, 3, 4]
    record = refused if refuses else Recorder(SimpleNamespace(model=model))
    written = make_step(TrainingStep, make_aim())
    recorded = make_step(RecordedStep, model, record=record)
    for number, count in enumerate(images):
        batch = batch_of(number, images=count)
        assert_close(recorded.take([batch], number, 0.01)[0], written.take([batch], number, 0.01)[0])
    for ours, theirs in zip(recorded.model.parameters(), written.model.parameters(), strict=True):
        assert_close(ours, theirs)
    assert ("not recorded as a CUDA graph, which would be faster: CUDA error" in caplog.text) is refuses
    assert "a page more" not in caplog.text


@pytest.mark.gpu
def test_a_step_that_waits_for_the_device_is_taken_as_written(make_aim, caplog):
    """The recording that was begun has the generator of random numbers, and its stream."""
    written, recorded = (make_step(kind, make_aim(), device="cuda") for kind in (TrainingStep, RecordedStep))
    loss = recorded.loss

    def waiting(*given):
        found = loss(*given)
        assert found[0].item() > 0
        return found

    recorded.loss, stream = waiting, torch.cuda.current_stream()
    for number in range(5):
        (found, (report,)), (wanted, (wanted_report,)) = (
            step.take([batch_of(number, "cuda")], number, 0.01) for step in (recorded, written)
        )
        assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        assert float(report["dropped"]) == float(wanted_report["dropped"]), "the same random numbers"
    assert "not recorded as a CUDA graph" in caplog.text
    assert torch.cuda.current_stream() == stream


@pytest.mark.parametrize(
    ("chosen", "recorded"),
    [({}, True), ({"cuda_graph": False}, False), ({"accumulation": 2}, False), ({"compile": "blocks"}, False)],
)
def test_when_steps_are_recorded(monkeypatch, chosen, recorded):
    monkeypatch.setattr(steps, "check_recordable", lambda *_: None)
    config = replace(CONFIG, **chosen)
    assert is_recorded(ToyTask(), config, torch.device("cuda")) is recorded
    monkeypatch.undo()
    assert not is_recorded(ToyTask(), config, torch.device("cpu"))
