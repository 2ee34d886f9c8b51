"""RAR: images in random orders, fewer and fewer of them, and vectors that tell which place comes next."""

import dataclasses
import math

import pytest
import torch
from ranks_task import Generator
from test_rear import batch_of, plain_and_recorded
from torch.testing import assert_close

from aimamba.checkpoints.weights import read_tensors
from aimamba.errors import ConfigError
from aimamba.models import AiM
from aimamba.train.generator import GeneratorTask, code_cross_entropy
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.plan.outline import outline
from aimamba.train.random_order import NextPlaces, RandomOrder
from aimamba.train.recipe import DataConfig, Recipe, load_recipe
from aimamba.train.settings import FitConfig
from aimamba.train.stages import make_task
from aimamba.train.step import check_recordable
from refusals import one_line_error

ALL = {"random_order": 0.9, "random_order_since": 1, "random_order_until": 5}
CALM = {"label_dropout": 0.0, "token_dropout": 0.0}
RASTER = torch.arange(16)


@pytest.mark.parametrize(("step", "share"), [(0, 0.8), (4, 0.8), (7, 0.4), (9, 0.8 / 6), (10, 0.0), (1000, 0.0)])
def test_the_share_stays_and_then_falls_to_nothing(step, share):
    order = RandomOrder(0.8, 4, 10)
    assert order.share(step) == pytest.approx(share)
    assert float(order.share(torch.tensor(step))) == pytest.approx(share)


def test_a_share_of_the_images_is_in_random_order(rng):
    found = RandomOrder(0.5, 0, 10).draw(2000, 16, rng(), 4)
    assert torch.equal(found.sort(dim=1).values, RASTER.expand(2000, 16))
    moved = (found != RASTER).any(dim=1)
    assert float(moved.float().mean()) == pytest.approx(0.3, abs=0.04)
    assert_close(found[moved].float().mean(dim=0), torch.full((16,), 7.5), rtol=0, atol=0.8)
    assert torch.equal(RandomOrder(1.0, 0, 10).draw(30, 16, rng(), 10), RASTER.expand(30, 16))
    assert bool((RandomOrder(1.0, 0, 10).draw(30, 16, rng(), 0) != RASTER).any(dim=1).all())


@torch.no_grad()
def test_next_places_tell_what_raster_order_does_not(rng):
    places = NextPlaces(4, 3)
    places.init_weights(rng())
    table = places.table.weight
    found = places(torch.tensor([[0, 1, 2, 3], [3, 1, 2, 0]]))
    assert torch.equal(found[0], torch.zeros(4, 3))
    expected = [table[3] - table[0], table[1] - table[4], torch.zeros(3), table[0] - table[3]]
    assert torch.equal(found[1], torch.stack(expected))


@torch.no_grad()
def test_places_move_the_embeddings_and_what_is_added_is_an_input(make_aim, rng):
    model, other = make_aim(dtype=torch.float64), make_aim(dtype=torch.float64)
    length = model.config.num_tokens
    codes, labels = torch.randint(24, (4, length - 1), generator=rng()), torch.tensor([0, 1, 2, 5])
    order = torch.randperm(length, generator=rng())
    other.position_embedding.weight[:length] = model.position_embedding.weight[order]
    shuffled = model(codes, labels, places=order[:-1].expand(4, -1))
    assert_close(shuffled, other(codes, labels), rtol=1e-12, atol=1e-12)
    plain, raster = model(codes, labels), torch.arange(length - 1).expand(4, -1)
    assert torch.equal(model(codes, labels, places=raster, added=torch.zeros(4, length, model.config.width)), plain)
    added = torch.zeros(4, length, model.config.width)
    added[:, 3] = 1.0
    changed = (model(codes, labels, added=added) - plain).abs().amax(dim=(0, 2))
    assert not changed[:3].any()
    assert bool((changed[3:] > 1e-6).all())


def test_the_loss_is_that_of_the_codes_in_their_order_and_in_the_end_the_usual_one(rng):
    task, batch = Generator(**CALM, **ALL), batch_of()
    generator = rng()
    task.left_out(batch, generator)  # draws first, and with these settings leaves out nothing
    order = task.config.order.draw(8, 16, generator, 0)
    given = {"places": order[:, :-1], "added": task.next_places(order)}
    expected = code_cross_entropy(task.model, batch.codes.gather(1, order), batch.labels, **given)
    assert torch.equal(task.loss(task.model, batch, rng(), 0)[0], expected)
    usual = code_cross_entropy(task.model, *batch)
    assert torch.equal(task.loss(task.model, batch, rng(), 5)[0], usual)
    assert not torch.isclose(expected, usual)
    assert task.evaluate(task.model) == Generator(**CALM).evaluate(task.model)


def test_a_stopped_run_continues_exactly_beside_rear_and_saves_no_vectors(tmp_path, metrics, continued):
    given = {**ALL, "rear_weight": 0.5}
    whole, halves = continued(**given)
    assert_close(halves, whole, rtol=0, atol=0)
    learned, first = whole["auxiliary"]["next_places.table.weight"], Generator(**given).next_places.table.weight
    assert bool((learned != first).any(dim=1).all())
    [saved] = (tmp_path / "whole").glob("model/generator/*.safetensors")
    assert read_tensors(saved).keys() == Generator().model.state_dict().keys()
    assert {"loss", "vector_recovery", "auxiliary_gradient_norm"} <= metrics(tmp_path / "whole", "train")[0].keys()


def test_a_recorded_step_has_the_share_of_its_number():
    plain, recorded = plain_and_recorded(**ALL)
    assert_close(recorded, plain, rtol=1e-4, atol=1e-5)
    check_recordable(Generator(**ALL), torch.device("cuda"))


def test_a_plan_counts_the_vectors():
    changes = {"task.random_order": 1.0, "task.random_order_until": 9}
    plain, random = (outline(load_recipe("avatars-tiny-aim", given)) for given in ({}, changes))
    width = load_recipe("avatars-tiny-aim").model["width"]
    assert random.trained - plain.trained == (random.tokens + 1) * width
    assert (random.parameters, random.averaged) == (plain.parameters, plain.averaged)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"random_order": -0.1}, "task.random_order must lie in"),
        ({"random_order": math.nan}, "task.random_order must lie in"),
        ({"random_order": 1.5, "random_order_until": 9}, "task.random_order must lie in"),
        ({"random_order": 1.0}, "needs task.random_order_until"),
        ({"random_order": 1.0, "random_order_since": 9, "random_order_until": 9}, "above task.random_order_since = 9"),
        ({"random_order_since": -1}, "task.random_order_since must not be negative"),
        ({"random_order_until": -1}, "task.random_order_until"),
        ({"random_order": 1.0, "random_order_until": 9, "objective": "cca"}, "task.random_order goes with"),
    ],
)
def test_settings_out_of_range_are_refused(values, named):
    with one_line_error(ConfigError, named):
        GeneratorTaskConfig(**values)


def test_a_model_without_learned_positions_is_refused():
    task, config = Generator(), GeneratorTaskConfig(tokenizer="none", **ALL)
    model = AiM(dataclasses.replace(task.model.config, positions="none"))
    with one_line_error(ConfigError, "task.random_order needs learned positions"):
        GeneratorTask(model, task.tokenizer, task.train, task.held_out, ("a", "b", "c"), config)


def test_what_was_not_tried_is_refused():
    fixed = {"tokenizer": "x", "random_order": 1.0, "random_order_until": 9}
    fit_config = FitConfig(steps=1, batch_size=1, lr=1e-3, compile=True)
    with one_line_error(ConfigError, "task.random_order was not tried with fit.compile = true"):
        recipe = Recipe(stage="generator", data=DataConfig(), fit=fit_config, task=fixed)
        make_task(recipe, device=torch.device("cpu"))


def test_schedules_that_do_not_end_are_noted():
    task = GeneratorTaskConfig(code_noise=0.5, code_noise_until=20, random_order=1.0, random_order_until=9)
    assert task.unfinished(20) == []
    [noise, order] = task.unfinished(8)
    assert noise == "note: task.code_noise is still changing at the end: task.code_noise_until = 20, fit.steps = 8"
    assert "task.random_order_until = 9" in order
    assert GeneratorTaskConfig(code_noise_until=20).unfinished(8) == []
