"""Condition contrastive alignment: loss, negatives, frozen copy, resume, LoRA, settings."""

import copy
import math

import pytest
import torch
from test_stages import CPU, DATA, recipe
from torch.nn import functional as F
from torch.testing import assert_close
from tuned import KINDS, save_given, tuned

from aimamba.data.codes import CaptionedBatch, CodeBatch
from aimamba.errors import ConfigError
from aimamba.ops.loss.log_likelihood import sliced_log_likelihood
from aimamba.pipeline import Pipeline
from aimamba.train.conditions import Conditions
from aimamba.train.contrastive import ContrastiveTask
from aimamba.train.fit import FitConfig, fit
from aimamba.train.frozen import check_known
from aimamba.train.plan.cards import find_card
from aimamba.train.plan.outline import outline
from aimamba.train.plan.plan import make_plan
from aimamba.train.stages import make_task, resolved
from refusals import one_line_error

CCA = {"objective": "cca", "tokenizer": ""}

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(make_aim, make_vq):
    """Make a task of images that differ in their class, or in their caption."""
    return lambda kind, **config: tuned(ContrastiveTask, kind, make_aim, make_vq, objective="cca", **config)


@pytest.fixture
def given(here, make_aim, make_vq):
    """A pipeline in the folder ``given``."""
    return save_given(here / "given", make_aim, make_vq)


def row_of(model, codes, label, caption):
    """The logarithm of the likelihood of the codes of one image, computed directly."""
    captions = None if caption is None else caption[None]
    logits = model(codes[None, :-1], torch.tensor([label]), captions)[0]
    return float(logits.log_softmax(dim=-1).gather(1, codes[:, None]).sum())


class TestLoss:
    def test_at_the_start_nothing_differs_from_the_frozen_copy(self, make, rng, kind):
        task = make(kind, cca_lambda=3.0, token_dropout=0.2, code_noise=0.1)
        loss, metrics = task.loss(task.model.train(), next(task.batches(0, 6)), rng())
        assert float(metrics["positive"]) == float(metrics["negative"]) == float(metrics["accuracy"]) == 0
        assert float(metrics["loss"]) == pytest.approx(4 * math.log(2), rel=1e-6)
        assert float(loss.detach()) == pytest.approx(4 / 3 * math.log(2), rel=1e-6)
        held_out = task.evaluate(task.model.eval())
        assert held_out["loss"] == pytest.approx(4 * math.log(2), rel=1e-6)
        assert held_out["positive"] == held_out["negative"] == held_out["accuracy"] == 0
        assert super(ContrastiveTask, task).evaluate(task.model)["bits_per_token"] == pytest.approx(
            held_out["bits_per_token"], rel=1e-5
        )

    def test_it_is_that_of_the_paper(self, make, rng, kind):
        task = make(kind, cca_beta=0.3, cca_lambda=2.0)
        with torch.no_grad():
            for weight in task.model.parameters():
                weight.add_(torch.randn(weight.shape, generator=rng(1)), alpha=0.05)
        batch = next(task.batches(0, 4))
        captions = batch.captions if kind == "captions" else [None] * 4
        given = [(int(label), None if text is None else text.tolist())
                 for label, text in zip(batch.labels, captions, strict=True)]  # fmt: skip
        after = [[(i + further) % 4 for further in range(1, 4)] for i in range(4)]
        other = [next(j for j in after[i] if given[j] != given[i]) for i in range(4)]
        with torch.no_grad():
            r = [
                [row_of(task.model, codes, batch.labels[j], captions[j])
                 - row_of(task.copy, codes, batch.labels[j], captions[j]) for j in (i, other[i])]
                for i, codes in enumerate(batch.codes)
            ]  # fmt: skip
        positive, negative = torch.tensor(r).unbind(1)
        expected = -F.logsigmoid(0.3 * positive) - 2 * F.logsigmoid(-0.3 * negative)
        _, metrics = task.loss(task.model, batch, rng())
        assert_close(metrics["loss"], expected.mean(), rtol=1e-4, atol=1e-4)
        assert_close(metrics["positive"], positive.mean(), rtol=1e-4, atol=1e-4)
        assert_close(metrics["negative"], negative.mean(), rtol=1e-4, atol=1e-4)
        assert float(metrics["accuracy"]) == pytest.approx(float((positive > negative).float().mean()))

    def test_steps_raise_what_fits_and_lower_what_does_not(self, make, here, kind):
        task = make(kind, cca_lambda=1.0)
        before = copy.deepcopy(task.copy.state_dict())
        fit(task, FitConfig(steps=8, batch_size=12, lr=5e-3, warmup_steps=0, ema_decay=0.0), here / "run")
        _, metrics = task.loss(task.model, next(task.batches(0, 12)), torch.Generator().manual_seed(0))
        assert metrics["positive"] > metrics["negative"]
        assert metrics["accuracy"] > 0.7
        if kind == "classes":  # both kinds of rows are alike in all but the condition, and only their margin must rise
            assert metrics["positive"] > 0 > metrics["negative"]
        assert all(torch.equal(weight, before[name]) for name, weight in task.copy.state_dict().items())
        assert task.objective().metric == "loss"

    def test_images_without_a_condition_have_the_first_term_alone(self, make, rng, kind):
        task = make(kind, label_dropout=1.0, cca_lambda=5.0)
        _, metrics = task.loss(task.model, next(task.batches(0, 6)), rng())
        assert float(metrics["loss"]) == pytest.approx(math.log(2), rel=1e-6)
        one = next(task.batches(0, 1))  # as when a bad batch is computed again, row by row
        assert float(make(kind).loss(task.model, one, rng())[1]["loss"]) == pytest.approx(math.log(2), rel=1e-6)

    def test_likelihoods_in_slices(self, rng):
        hidden, head = (torch.randn(n, 6, generator=rng(n), requires_grad=True) for n in (7, 10))
        targets, weights = torch.arange(7), torch.randn(7, generator=rng())
        whole = F.log_softmax(hidden @ head.T, dim=-1).gather(1, targets[:, None])[:, 0]
        found = sliced_log_likelihood(hidden, head, targets, logits_at_once=30)
        assert_close(found, whole)
        for one, two in zip(*(torch.autograd.grad(x @ weights, (hidden, head)) for x in (found, whole)), strict=True):
            assert_close(one, two)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(sliced_log_likelihood(hidden, head, targets), whole, rtol=0.05, atol=0.05)


class TestOthers:
    @staticmethod
    def others(labels, captions=None, bare=None, mute=None):
        """The number of the row that each row is contrasted with; None if there is none."""
        count = len(labels)
        bare, mute = (torch.zeros(count, dtype=torch.bool) if each is None else torch.tensor(each).bool()
                      for each in (bare, mute))  # fmt: skip
        numbered = torch.arange(count)
        texts = None if captions is None else torch.tensor(captions)
        found, paired = Conditions(torch.tensor(labels), texts).others(bare, mute)
        rows = []
        for i in numbered.tolist():
            same = found.labels[i] == torch.tensor(labels)
            if texts is not None:
                same &= (found.captions[i] == texts).all(dim=1)
            rows.append(next(j for j in ((i + k) % count for k in range(count)) if same[j]) if paired[i] else None)
        return rows

    def test_the_next_other_class(self):
        assert self.others([0, 0, 1, 1, 2]) == [2, 2, 4, 4, 0]
        assert self.others([3, 3]) == [None, None]
        assert self.others([0, 1, 2], bare=[1, 0, 0]) == [None, 2, 0]

    def test_captions_count_as_far_as_they_are_seen(self):
        texts = [[1, 0], [1, 0], [2, 0], [0, 0]]
        assert self.others([0, 0, 0, 0], texts) == [2, 2, 0, 0]  # never one without a caption
        assert self.others([0, 1, 0, 0], texts, mute=[1, 1, 1, 1]) == [1, 2, 1, 1]
        assert self.others([0, 1, 0, 0], texts, bare=[1, 1, 1, 1]) == [2, 2, 0, 0]
        assert self.others([0, 1, 2, 3], texts, bare=[1, 0, 0, 0], mute=[1, 0, 0, 0])[0] is None

    def test_vectors_of_a_frozen_encoder(self):
        texts = torch.tensor([[[0.5]], [[0.5]], [[-0.5]]])
        found, paired = Conditions(torch.zeros(3).long(), texts).others(*torch.zeros(2, 3).bool())
        assert found.captions.flatten().tolist() == [-0.5, -0.5, 0.5]
        assert paired.all()

    def test_what_is_left_out_is_left_out_of_both(self, make, rng, monkeypatch):
        task, seen = make("captions", class_dropout=0.5, caption_dropout=0.3, label_dropout=0.2), {}
        count = 64
        codes, numbers = torch.zeros(count, 9, dtype=torch.long), torch.arange(count)
        batch = CaptionedBatch(codes, numbers % 5, 1 + numbers[:, None].expand(-1, 8))
        forward = task.model.forward

        def record(codes, labels, captions, **options):
            seen.update(labels=labels, captions=captions)
            return forward(codes, labels, captions, **options)

        monkeypatch.setattr(task.model, "forward", record)
        task.loss(task.model, batch, rng())
        for values in (seen["labels"] == 5, (seen["captions"] == 0).all(dim=1)):
            own, other = values.chunk(2)
            assert torch.equal(own, other)
            assert 0 < own.sum() < count


class TestRuns:
    def train(self, out, steps, **task):
        values = {"stage": "generator", "init": "given", "data": DATA, "task": CCA | task}
        config = FitConfig(steps=steps, batch_size=4, lr=1e-3, ema_decay=0.9, schedule="constant")
        fit(
            lambda: make_task(recipe("generator", init="given", task=CCA | task), device=CPU, codes=out / "codes"),
            config,
            out,
            recipe=values,
            resolve=resolved,
        )

    def test_a_stopped_run_goes_on_exactly(self, given, here, make_aim, make_vq, metrics):
        for out, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
            self.train(here / out, steps)
        one, two = (torch.load(here / out / "checkpoint.pt")["parts"]["model"] for out in ("whole", "parts"))
        assert all(torch.equal(weight, two[name]) for name, weight in one.items())
        assert metrics(here / "whole", "held-out")[-1] == metrics(here / "parts", "held-out")[-1]
        assert {"loss", "positive", "negative", "accuracy"} < metrics(here / "parts", "train")[-1].keys()
        assert Pipeline.from_pretrained(here / "parts").class_names == ("thumbs", "landscape")
        vq = make_vq()
        other = make_aim(seed=1, num_tokens=64, num_classes=3, width=32, tokenizer=vq.code_fingerprint())
        Pipeline(vq, other, ("cats", "thumbs", "landscape")).save_pretrained(here / "given")
        with one_line_error(ConfigError, match="holds a run on another init"):
            self.train(here / "parts", 6)

    def test_the_copy_shares_what_is_not_trained(self, given):
        pytest.importorskip("peft")
        task = make_task(recipe("generator", init="given", task={**CCA, "lora_rank": 2}), device=CPU)
        pairs = zip(task.model.parameters(), task.copy.parameters(), strict=True)
        assert all((one is two) != one.requires_grad for one, two in pairs)
        loss, found = task.loss(task.model.train(), next(task.batches(0, 4)), torch.Generator().manual_seed(0))
        assert float(found["positive"]) == float(found["negative"]) == 0
        loss.backward()
        assert all((weight.grad is not None) == weight.requires_grad for weight in task.model.parameters())
        assert not any(weight.requires_grad for weight in task.copy.parameters())

    @pytest.mark.parametrize(
        ("sections", "message"),
        [
            ({"task": {"cca_beta": 0.0}}, "task.cca_beta must be positive, got 0"),
            ({"task": {"cca_lambda": math.inf}}, "task.cca_lambda must be positive, got inf"),
            ({"task": {"objective": "dpo"}}, "objective must be one of 'likelihood', 'cca', 'distillation', got 'dpo'"),
            ({"task": {"classes": "new"}}, "given does not know the class 'thumbs'; train it first"),
            ({"fit": {"compile": True}}, "fit.compile would not compile the frozen copy"),
            ({"fit": {"accumulation": 2}}, "fit.batch_size / fit.accumulation is 1; it must be at least 2"),
            ({"data": {"source": "avatars:thumbs"}}, "all training images have the same one; add images"),
        ],
    )
    def test_bad_settings(self, given, sections, message):
        sections = {**sections, "task": {**CCA, **sections.get("task", {})}}
        with one_line_error(ConfigError, match=message):
            make_task(recipe("generator", init="given", **sections), device=CPU)

    def test_one_class_is_refused_before_its_images_are_encoded(self, given, tmp_path):
        codes = tmp_path / "codes"
        one = recipe("generator", init="given", data={"source": "avatars:thumbs"}, task=CCA)
        with one_line_error(ConfigError, match="have the same one; add images"):
            make_task(one, device=CPU, codes=codes)
        assert not codes.exists()

    def test_captions_that_the_model_cannot_read(self):
        with one_line_error(ConfigError, match=r"^task.objective = 'cca' sharpens .* given does not know captions; "):
            check_known("cca", fresh_classes=(), fresh_captions=True, init="given")

    def test_it_needs_a_model_to_start_from(self):
        with one_line_error(ConfigError, match=r"^task.objective .* name that in 'init' or with --init"):
            make_task(recipe("generator", task={"objective": "cca"}), device=CPU)


class TestPlan:
    def outline(self, **task):
        return outline(recipe("generator", init="given", task={"tokenizer": "", **task}))

    def test_the_copy_and_both_rows_are_counted(self, given):
        plain, found = self.outline(), self.outline(objective="cca")
        assert (plain.frozen, found.frozen) == (0, 4 * found.parameters)
        assert (found.shared, found.work) == (0, pytest.approx(8 / 3))
        place = {"fit": {"batch_size": 32}}
        plans = [
            make_plan(recipe("generator", init="given", task={"tokenizer": "", **task}, **place), gpus=1,
                      card=find_card("a100-40gb", None))
            for task in ({}, {"objective": "cca"})
        ]  # fmt: skip
        plain_step, found_step = (plan.chosen.memory for plan in plans)
        assert found_step.parameters == 2 * plain_step.parameters
        assert found_step.activations > 1.7 * plain_step.activations
        parts = self.outline(objective="cca", train="classes")
        assert parts.frozen == 4 * parts.trained < parts.shared


def test_a_batch_of_classes_is_what_the_task_reads(make):
    assert type(next(make("classes").batches(0, 2))) is CodeBatch
