"""Guidance distillation: the loss, what it teaches, resuming, LoRA, settings."""

import copy

import pytest
import torch
from test_stages import CPU, DATA, recipe
from torch.nn import functional as F
from torch.testing import assert_close
from tuned import KINDS, save_given, tuned

from aimamba.errors import ConfigError
from aimamba.pipeline import Pipeline
from aimamba.train.distillation import DistillationTask
from aimamba.train.fit import FitConfig, fit
from aimamba.train.plan.cards import find_card
from aimamba.train.plan.outline import outline
from aimamba.train.plan.plan import make_plan
from aimamba.train.stages import make_task, resolved
from refusals import one_line_error

DISTIL = {"objective": "distillation", "tokenizer": ""}
OBJECTIVES = ("likelihood", "distillation", "cca")
ALMOST_ONE, ALMOST_ALL = 1 + 1e-9, 1 - 1e-9

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(params=KINDS)
def make(request, make_aim, make_vq):
    """Make a task of images that differ in their class, or in their caption."""
    kind = request.param
    return lambda **config: tuned(DistillationTask, kind, make_aim, make_vq, objective="distillation", **config)


@pytest.fixture
def given(here, make_aim, make_vq):
    """A pipeline in the folder ``given``."""
    return save_given(here / "given", make_aim, make_vq)


def logits(model, codes, labels, captions):
    with torch.no_grad():
        return model.eval()(codes[:, :-1], labels, captions)


def of_batch(batch):
    return batch.codes, batch.labels, getattr(batch, "captions", None)


def guided(model, codes, labels, captions, scale):
    """What the model would sample from with guidance: logarithms of probabilities."""
    nothing = torch.full_like(labels, model.condition.null_class)
    c = logits(model, codes, labels, captions)
    u = logits(model, codes, nothing, None if captions is None else torch.zeros_like(captions))
    return (u + scale * (c - u)).log_softmax(dim=-1)


class TestLoss:
    def test_it_is_the_divergence_from_the_guided_copy(self, make, rng):
        task = make(distilled_scale=2.5)
        with torch.no_grad():
            for weight in task.model.parameters():
                weight.add_(torch.randn(weight.shape, generator=rng(1)), alpha=0.05)
        batch = next(task.batches(0, 6))
        wanted = guided(task.copy, *of_batch(batch), 2.5)
        own = logits(task.model, *of_batch(batch)).log_softmax(dim=-1)
        loss, metrics = task.loss(task.model, batch, rng())
        assert_close(loss, F.kl_div(own, wanted, reduction="none", log_target=True).sum(dim=-1).mean())
        assert float(loss.detach()) > 0.01
        assert metrics == {}

    def test_without_guidance_nothing_is_to_learn_at_the_start(self, make, rng):
        task = make(distilled_scale=ALMOST_ONE, token_dropout=0.2, code_noise=0.3)
        loss, _ = task.loss(task.model.train(), next(task.batches(0, 6)), rng())
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
        assert task.evaluate(task.model.eval())["loss"] == pytest.approx(0.0, abs=1e-6)

    def test_images_without_a_condition_keep_the_unconditional_model(self, make, rng):
        task = make(distilled_scale=4.0, label_dropout=ALMOST_ALL)
        loss, _ = task.loss(task.model, next(task.batches(0, 6)), rng())
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)

    def test_held_out_images_have_all_their_conditions(self, make):
        task = make(distilled_scale=3.0, label_dropout=ALMOST_ALL)
        metrics = task.evaluate(task.model.eval())
        assert metrics["loss"] > 0.01
        usual = super(DistillationTask, task).evaluate(task.model)["bits_per_token"]
        assert metrics["bits_per_token"] == pytest.approx(usual, rel=1e-5)
        assert task.objective().metric == "loss"


def test_it_learns_to_do_without(make, here):
    task = make(distilled_scale=2.0)
    before = copy.deepcopy(task.copy.state_dict())
    first = task.evaluate(task.model.eval())["loss"]
    fit(task, FitConfig(steps=60, batch_size=12, lr=5e-3, warmup_steps=0, ema_decay=0.0), here / "run")
    batch = next(task.batches(0, 12))
    wanted = guided(task.copy, *of_batch(batch), 2.0)
    far = F.kl_div(logits(task.copy, *of_batch(batch)).log_softmax(-1), wanted, log_target=True, reduction="sum")
    near = F.kl_div(logits(task.model, *of_batch(batch)).log_softmax(-1), wanted, log_target=True, reduction="sum")
    assert near < 0.2 * far
    assert task.evaluate(task.model.eval())["loss"] < first
    assert all(torch.equal(weight, before[name]) for name, weight in task.copy.state_dict().items())


class TestRuns:
    def train(self, out, steps, **task):
        values = {"stage": "generator", "init": "given", "data": DATA, "task": DISTIL | task}
        config = FitConfig(steps=steps, batch_size=4, lr=1e-3, ema_decay=0.9, schedule="constant")
        fit(
            lambda: make_task(recipe("generator", init="given", task=DISTIL | task), device=CPU, codes=out / "codes"),
            config,
            out,
            recipe=values,
            resolve=resolved,
        )

    def test_a_stopped_run_goes_on_exactly(self, given, here, metrics):
        for out, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
            self.train(here / out, steps)
        one, two = (torch.load(here / out / "checkpoint.pt")["parts"]["model"] for out in ("whole", "parts"))
        assert all(torch.equal(weight, two[name]) for name, weight in one.items())
        assert metrics(here / "whole", "held-out")[-1] == metrics(here / "parts", "held-out")[-1]
        assert Pipeline.from_pretrained(here / "parts").class_names == ("thumbs", "landscape")

    def test_the_copy_shares_what_is_not_trained(self, given):
        pytest.importorskip("peft")
        task = make_task(recipe("generator", init="given", task={**DISTIL, "lora_rank": 2}), device=CPU)
        pairs = zip(task.model.parameters(), task.copy.parameters(), strict=True)
        assert all((one is two) != one.requires_grad for one, two in pairs)
        loss, _ = task.loss(task.model.train(), next(task.batches(0, 4)), torch.Generator().manual_seed(0))
        loss.backward()
        assert all((weight.grad is not None) == weight.requires_grad for weight in task.model.parameters())

    @pytest.mark.parametrize(
        ("sections", "message"),
        [
            (
                {"task": {"distilled_scale": 0.0}},
                "task.distilled_scale must be above 1, which is no guidance, .*, got 0",
            ),
            ({"task": {"distilled_scale": 1.0}}, "task.distilled_scale must be above 1, .*, got 1.0"),
            ({"task": {"distilled_scale": 1e38}}, "task.distilled_scale must be above 1, .*, got 1e"),
            ({"task": {"label_dropout": 1.0}}, "task.label_dropout = 1 leaves all images without a condition"),
            ({"task": {"cca_beta": 3.0}}, "task.cca_beta is for task.objective = 'cca'; leave it out, or set that too"),
            (
                {"task": {"objective": "cca", "distilled_scale": 3.0}},
                "task.distilled_scale is for task.objective = 'dis",
            ),
            ({"task": {"rear_weight": 1.0}}, "task.rear_weight goes with task.objective = 'likelihood'"),
            (
                {"task": {"classes": "new"}},
                "sharpens what a model knows, and given does not know the class",
            ),
            ({"fit": {"compile": True}}, "the frozen copy of task.objective = 'distillation'; set it to false"),
        ],
    )
    def test_bad_settings(self, given, sections, message):
        sections = {**sections, "task": {**DISTIL, **sections.get("task", {})}}
        with one_line_error(ConfigError, match=message):
            make_task(recipe("generator", init="given", **sections), device=CPU)

    def test_it_needs_a_model_to_start_from(self):
        with one_line_error(ConfigError, match=r"^task.objective .* name that in 'init' or with --init"):
            make_task(recipe("generator", task={**DISTIL, "tokenizer": "given"}), device=CPU)


def test_a_plan_counts_the_copy_and_its_two_rows(given):
    found = outline(recipe("generator", init="given", task=DISTIL))
    assert (found.frozen, found.shared, found.work) == (4 * found.parameters, 0, pytest.approx(5 / 3))
    recipes = [recipe("generator", init="given", task={"tokenizer": "", "objective": each}) for each in OBJECTIVES]
    plans = [make_plan(each, gpus=1, card=find_card("a100-40gb", None)) for each in recipes]
    memories = [plan.chosen.memory for plan in plans]
    assert memories[1].parameters == 2 * memories[0].parameters
    assert memories[0].activations < memories[1].activations < memories[2].activations
