"""The generator's task: its loss, metrics and sample sheets."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aimamba.data.codes import CodeBatch, CodeSet
from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.ops.loss import cross_entropy
from aimamba.pipeline import Pipeline
from aimamba.train import generator as generator_module
from aimamba.train.generator import GeneratorTask
from aimamba.train.generator_settings import GeneratorTaskConfig

NAMES = ("planets", "sprouts", "robots", "shells", "cats")


@pytest.fixture
def codes():
    generator = np.random.default_rng(0)

    def codes(count, views=1):
        return CodeSet(generator.integers(0, 24, (count, views, 9)).astype(np.uint16), generator.integers(0, 5, count))

    return codes


@pytest.fixture
def make(make_aim, make_vq, codes):
    def make(held_out=6, views=1, **config):
        settings = GeneratorTaskConfig(tokenizer="vq", **config)
        return GeneratorTask(make_aim(), make_vq(), codes(12, views), codes(held_out), NAMES, settings, seed=3)

    return make


@pytest.fixture
def batch(rng):
    codes = torch.randint(24, (40, 9), generator=rng())
    return CodeBatch(codes, torch.randint(5, (40,), generator=rng(1)))


def expected(model, codes, labels, **options):
    """Mean cross entropy, computed from the probabilities."""
    log_probabilities = model(codes[:, :-1], labels, **options).log_softmax(dim=-1)
    return -log_probabilities.gather(-1, codes[..., None]).mean()


def test_bits_per_token_decide_which_model_is_the_best(make):
    assert make().objective() == ("bits_per_token", pytest.approx(math.log2(24)))


def test_the_loss_without_dropout(make, batch, rng):
    task = make(label_dropout=0.0)
    loss, report = task.loss(task.model, batch, rng(), 0)
    assert torch.allclose(loss, expected(task.model, batch.codes, batch.labels))
    assert report == {}


def test_dropped_labels_leave_no_trace_of_the_class(make, batch, rng):
    task = make(label_dropout=1.0)
    loss, _ = task.loss(task.model, batch, rng(), 0)
    assert torch.allclose(loss, expected(task.model, batch.codes, torch.full((40,), 5)))
    loss.backward()
    assert not task.model.condition.table.weight.grad[:5].any(), (
        "neither through the class token nor through the condition"
    )
    assert task.model.condition.table.weight.grad[5].any()


def test_token_and_condition_are_dropped_together_by_the_given_generator(make, batch, rng):
    task = make(label_dropout=0.4)
    state = torch.random.get_rng_state()
    dropped = torch.rand(40, generator=rng(8)) < 0.4
    assert 5 < dropped.sum() < 30
    loss, _ = task.loss(task.model, batch, rng(8), 0)
    assert torch.allclose(loss, expected(task.model, batch.codes, batch.labels.masked_fill(dropped, 5)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loss != task.loss(task.model, batch, rng(9), 0)[0]


def test_how_many_labels_are_dropped(make, batch, monkeypatch, rng):
    task, seen = make(label_dropout=0.1), []
    monkeypatch.setattr(
        generator_module,
        "code_cross_entropy",
        lambda model, codes, labels, *rest, **options: seen.append(labels) or codes.sum(),
    )
    for seed in range(100):
        task.loss(task.model, batch, rng(seed), 0)
    labels = torch.cat(seen)
    kept = labels != 5
    assert 300 < (~kept).sum() < 500
    assert torch.equal(labels[kept], batch.labels.repeat(100)[kept])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_checkpointing_and_slices_change_neither_loss_nor_gradients(make, batch, precision, monkeypatch, rng):
    results = []
    for checkpointing, logits_at_once in ((False, 2**22), (True, 2**22), (False, 20)):
        monkeypatch.setattr(cross_entropy, "_ON_CPU", logits_at_once)
        task = make(checkpointing=checkpointing)
        passed = []
        task.model.blocks[0].register_forward_pre_hook(lambda *_, passed=passed: passed.append(1))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss, _ = task.loss(task.model.train(), batch, rng(), 0)
        loss.backward()
        assert len(passed) == 1 + checkpointing
        results.append([loss.detach(), *(parameter.grad for parameter in task.model.parameters())])
    near = 1e-6 if precision == torch.float32 else 0.02
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            assert (ours - theirs).abs().max() <= near * max(1.0, float(theirs.abs().max()))


def test_every_part_learns(make, batch, rng):
    task = make(label_dropout=0.5)
    task.loss(task.model.train(), batch, rng(), 0)[0].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() for parameter in task.model.parameters())


@pytest.mark.parametrize("held_out", [3, 70])  # below and above the size of a block
def test_held_out_loss(make, held_out):
    task = make(held_out=held_out)
    measured = task.evaluate(task.model)
    codes = torch.from_numpy(task.held_out.shards[0][:, 0].astype(np.int64))
    loss = expected(task.model, codes, torch.from_numpy(task.held_out.labels)).item()
    assert measured == pytest.approx({"loss": loss, "bits_per_token": loss / math.log(2)}, rel=1e-5)


def test_batches_continue_from_any_position(make):
    task = make(views=2)
    batches = task.batches(0, 4)
    whole = [next(batches) for _ in range(5)]
    batches = task.batches(12, 4)
    for expected in whole[3:]:
        batch = next(batches)
        assert torch.equal(batch.codes, expected.codes)
        assert torch.equal(batch.labels, expected.labels)


def test_only_the_generator_is_trained(make, batch, rng):
    task = make()
    assert task.companions() == {}
    task.loss(task.model, batch, rng(), 0)[0].backward()
    assert all(parameter.grad is None for parameter in task.tokenizer.parameters())


def test_the_sheet_is_a_guided_sample_of_each_class(make, stacked, rendered_sheets):
    task = make(sheet_pictures=2, sheet_cfg_scale=3.0, sheet_top_k=4)
    calls = rendered_sheets(generator_module)
    task.sheet(task.model)
    [(rows, names)] = calls
    assert tuple(names["row_names"]) == NAMES
    assert [len(row) for row in rows] == [2] * 5
    images = Pipeline(task.tokenizer, task.model, NAMES)(NAMES, 2, SamplingConfig(cfg_scale=3.0, top_k=4))
    assert np.array_equal(stacked([image for row in rows for image in row]), stacked(images))


def test_saving(make, tmp_path):
    task = make()
    task.save(task.model, tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.class_names == NAMES
    assert torch.equal(loaded.tokenizer.codebook, task.tokenizer.codebook)
    assert torch.equal(loaded.generator.word_embedding.weight, task.model.word_embedding.weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_dropout", -0.1),
        ("label_dropout", 1.1),
        ("token_dropout", -0.1),
        ("token_dropout", 1.0),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.0),
        ("sheet_pictures", 0),
        ("sheet_cfg_scale", -1.0),
        ("sheet_top_k", -1),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ConfigError, match=f"task.{name} must .*, got {value}"):
        GeneratorTaskConfig(tokenizer="vq", **{name: value})


def test_without_token_dropout_there_is_no_mask_and_no_random_number(make, batch, rng):
    task, used, untouched = make(), rng(3), rng(3)
    assert task.token_mask(task.model, batch.codes, used) is None
    assert torch.equal(used.get_state(), untouched.get_state())


def test_token_dropout_masks_the_word_embeddings_in_the_loss(make, batch, rng):
    task, random = make(label_dropout=0.0, token_dropout=0.5), rng(6)
    loss, _ = task.loss(task.model, batch, rng(6), 0)
    torch.rand(40, generator=random)  # for the labels
    mask = task.token_mask(task.model, batch.codes, random)
    assert torch.allclose(loss, expected(task.model, batch.codes, batch.labels, token_mask=mask))
    assert not torch.allclose(loss, expected(task.model, batch.codes, batch.labels))


def test_token_dropout_drops_features_at_its_rate_and_scales_the_others_up(make, rng):
    task = make(token_dropout=0.25)
    mask = task.token_mask(task.model, torch.zeros(400, 9, dtype=torch.long), rng())
    assert mask.shape == (400, 8, task.model.config.width)
    assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.02)


def test_labels_are_smoothed_in_training_and_not_on_held_out_images(make, batch, rng):
    task = make(label_dropout=0.0, label_smoothing=0.3)
    loss, metrics = task.loss(task.model, batch, rng(), 0)
    logits = task.model(batch.codes[:, :-1], batch.labels).flatten(0, 1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.codes.flatten(), label_smoothing=0.3))
    assert abs(loss - expected(task.model, batch.codes, batch.labels)) > 0.01
    assert metrics == {}
    measured = task.evaluate(task.model)
    task.config = replace(task.config, label_smoothing=0.0)
    assert task.evaluate(task.model) == measured


def test_the_mask_applies_to_words_and_not_to_positions(make_aim):
    model = make_aim()
    codes, labels = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    silent = model(codes, labels, token_mask=torch.zeros(1, 3, model.config.width))
    with torch.no_grad():
        model.word_embedding.weight[0] = 0  # the head is tied: compare the other codes
    assert torch.allclose(model(codes, labels)[..., 1:], silent[..., 1:], atol=1e-6)
