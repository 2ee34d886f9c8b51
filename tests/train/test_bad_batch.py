"""The batch at which a run stopped because its numbers were not finite: named, saved, and computed again."""

import math

import pytest
import torch
from ranks_task import Generator, Tokenizer
from ranks_task import settings as small
from toy_task import ToyTask, settings

from aimamba.errors import CheckpointError, ConfigError
from aimamba.train.bad_batch import read_bad_batch
from aimamba.train.fit import fit
from aimamba.train.replay import replay
from full_disk import FullAt
from refusals import one_line_error


@pytest.mark.parametrize("changes", [{}, {"accumulation": 2}])
@pytest.mark.parametrize("stage", [Generator, Tokenizer])
def test_it_is_named_and_saved_and_gives_the_same_again(tmp_path, monkeypatch, metrics, stage, changes):
    """A model whose weights are so large that its numbers overflow from step 4 on."""
    task, loss, seen = stage(), stage.loss, []

    def spoilt(self, model, batch, rng, step=0):
        if step == 3 and not seen:
            with torch.no_grad():
                next(p for p in model.parameters() if p.ndim > 1 and p.requires_grad)[0, 0] = math.inf
        if step >= 3:
            seen.append(tuple(tensor.clone() for tensor in batch))
        return loss(self, model, batch, rng, step)

    monkeypatch.setattr(stage, "loss", spoilt)
    config = small(checkpoint_every=2, ema_decay=0.0, evaluate_every=0, **changes)
    with one_line_error(
        ConfigError,
        match=r"step 8 is the 5th skipped step in a row: .*nan.*; its batch is image \d+ \([\w./ -]+\), .* and 5 more, "
        r"saved with the weights in .*bad-batch\.pt; lower fit\.lr",
    ):
        fit(task, config, tmp_path)
    monkeypatch.undo()
    bad = read_bad_batch(tmp_path / "bad-batch.pt")
    assert (bad.step, bad.seed, bad.precision, len(bad.examples)) == (8, config.seed, "float32", 8)
    parts = changes.get("accumulation", 1)
    for ours, theirs in zip(bad.batch, seen[-parts:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    labels = torch.cat([part[1] for part in bad.batch]).tolist()
    assert labels == [example.label for example in bad.examples]
    names = getattr(task, "class_names", None) or task.train.class_names
    assert [example.class_name for example in bad.examples] == [names[label] for label in labels]
    again = replay(bad, stage())
    assert not math.isfinite(again.loss)
    assert again.not_finite
    assert len(again.alone) == 8
    assert not all(map(math.isfinite, again.alone))
    assert not {path.name for path in tmp_path.iterdir()} & {"model", ".lock"}


def test_the_guilty_image_stands_out(tmp_path):
    """One row of each batch that is not finite by itself."""

    class Spoilt(ToyTask):
        def batches(self, start, batch_size):
            for batch in super().batches(start, batch_size):
                if start >= 8:
                    batch.x[2] = math.nan
                start += batch_size
                yield batch

    class Plain(Spoilt):
        def __init__(self):
            super().__init__()
            self.model[1], self.seen = torch.nn.Identity(), torch.nn.Identity()  # else a row is in all of them

    with pytest.raises(ConfigError, match=r"step 7 is the 5th .* its batch is image 24 \(row\), .* and 1 more, saved"):
        fit(Plain(), settings(steps=9), tmp_path)
    bad = read_bad_batch(tmp_path / "bad-batch.pt")
    assert [math.isfinite(value) for value in replay(bad, Plain()).alone] == [True, True, False, True]


def test_skipped_steps_are_counted_also_after_a_stop(tmp_path, metrics):
    bad = {2, 3, 6}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    fit(ToyTask(lambda step: math.nan if step in bad else 1.0), settings(steps=8, log_every=4), whole)
    assert [line.get("skipped") for line in metrics(whole, "train")] == [2.0, 1.0]

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt
        return math.nan if step in bad else 1.0

    with pytest.raises(KeyboardInterrupt):
        fit(ToyTask(stop), settings(steps=8, log_every=4), halves)
    later = ToyTask(lambda step: math.nan if step + 2 in bad else 1.0)
    fit(later, settings(steps=8, log_every=4), halves)
    assert metrics(halves) == metrics(whole)


def test_on_a_full_disk_it_is_named_all_the_same(tmp_path, monkeypatch):
    task = ToyTask(lambda step: math.nan)
    full = FullAt(monkeypatch, 3)  # after recipe.toml and metrics.jsonl
    with one_line_error(ConfigError, match=r"image 16 \(row\), .*, which could not be saved \(No space left on device"):
        fit(task, settings(checkpoint_every=0, evaluate_every=0, sheet_every=0), tmp_path)
    assert full.count == 3
    assert not (tmp_path / "bad-batch.pt").exists()


def test_damage_and_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError):
        fit(ToyTask(lambda step: math.nan), settings(), tmp_path)
    path = tmp_path / "bad-batch.pt"
    good = read_bad_batch(path)
    assert len(good.examples) == 4
    with one_line_error(CheckpointError, match="do not fit this model"):
        replay(good, Generator())
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with one_line_error(CheckpointError, match=r"bad-batch\.pt cannot be read .* run the training again"):
        read_bad_batch(path)
    torch.save({"format": "another"}, path)
    with one_line_error(CheckpointError, match=r"is not a bad-batch\.pt of a training run"):
        read_bad_batch(path)
