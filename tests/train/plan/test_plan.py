"""Plans: what fits, hours, the command."""

import shlex
from functools import cache

import pytest

from aimamba.errors import ConfigError
from aimamba.train.plan.cards import CARDS, GIB, find_card
from aimamba.train.plan.on_paper import Needs
from aimamba.train.plan.outline import outline
from aimamba.train.plan.plan import _largest, command, make_plan, step_memory, usable
from aimamba.train.recipe import load_recipe
from refusals import one_line_error

SMALL = {"model.num_blocks": 1, "fit.accumulation": 1}


def plan(name="aim-b-imagenet256", settings=None, *, gpus=8, gpu="h100-80gb", memory=None, **options):
    settings = (SMALL if name.startswith("aim") else {}) | (settings or {})
    return planned(name, tuple(settings.items()), gpus, gpu, memory, **options)


@cache
def planned(name, settings, gpus, gpu, memory, **options):
    return make_plan(load_recipe(name, dict(settings)), gpus=gpus, card=find_card(gpu, memory), **options)


def test_what_is_planned_fits_and_a_tenth_more_images_do_not():
    found = plan(settings={"fit.batch_size": 1 << 18})
    limit = usable(found.card)
    for choice in found.choices:
        assert choice.memory.total <= limit
        assert 0.9 * limit < choice.memory.total * choice.largest / choice.at_once
        assert choice.largest < 1 << 15
    kept, again = found.choices
    assert again.largest > kept.largest


def test_a_share_of_the_batch_is_taken_in_equal_parts():
    found = plan(settings={"fit.batch_size": 8 * 6000}, memory="16GB")
    assert found.accumulation > 1
    assert found.accumulation * found.chosen.at_once == 6000
    assert found.chosen.at_once <= found.chosen.largest
    assert plan().accumulation == 1


def test_sharding_divides_weights_gradients_moments_and_average():
    settings = {"fit.ema_decay": 0.999}
    whole, parts = (plan(settings=settings, shard=shard).chosen.memory for shard in (1, 8))
    for name in ("parameters", "gradients", "optimizer", "average"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name) / 8, rel=1e-6)
    assert parts.activations == whole.activations
    assert plan().chosen.memory.average == 0


def test_gradients_are_there_from_the_start_when_parts_are_added():
    whole = plan(settings={"fit.batch_size": 256}, gpus=1)
    parts = plan(settings={"fit.batch_size": 6000}, gpus=1, memory="16GB")
    assert whole.accumulation == 1 < parts.accumulation
    assert whole.chosen.memory.saved > 0
    assert parts.chosen.memory.saved == 0


def test_gradients_of_parts_are_added_up_whole():
    whole = plan(settings={"fit.batch_size": 256}, shard=8)
    parts = plan(settings={"fit.batch_size": 8 * 6000}, shard=8, memory="16GB")
    assert parts.accumulation > 1
    assert parts.chosen.memory.gradients == pytest.approx(8 * whole.chosen.memory.gradients, rel=1e-6)
    assert parts.chosen.memory.optimizer == whole.chosen.memory.optimizer


def test_weights_are_gathered_for_a_step_of_several_processes():
    of = outline(load_recipe("aim-b-imagenet256", {"model.num_blocks": 8}))
    needed = Needs(activations=10**9, casts=5 * 10**7, gradients=4 * of.trained, peak=10**9)
    one, copies, split = (
        step_memory(of, needed, average=True, narrow=True, gpus=gpus, shard=shard).narrow
        for gpus, shard in ((1, 1), (8, 1), (8, 8))
    )
    assert one == needed.casts
    assert one < split < copies
    assert copies - split == 2 * (of.blocks - 2 * of.largest)


def test_activations_are_computed_again_where_nothing_else_fits():
    settings = {"model.num_blocks": 6, "model.vocab_size": 256, "model.num_tokens": 1024, "fit.batch_size": 1}
    between = sum(choice.memory.total for choice in plan(settings=settings, gpus=1, memory="16GB").choices) / 2
    found = plan(settings=settings, gpus=1, memory=f"{between / 0.96 / GIB + 1.5:.3f}GiB")
    kept, again = found.choices
    assert (kept.at_once, found.chosen) == (0, again)
    assert "task.checkpointing=true" in command(found, "aim-xl-imagenet256")


def test_the_recipes_own_choice_is_kept():
    assert plan(settings={"task.checkpointing": True}).chosen.checkpointing
    assert not plan().chosen.checkpointing


def test_hours_are_all_codes_over_the_rate_of_all_gpus():
    found = plan(tokens_per_second=1000.0)
    assert found.hours == pytest.approx(187_671 * 2048 * 256 / 1000 / 8 / 3600)
    again = plan(settings={"task.checkpointing": True}, tokens_per_second=1000.0)
    assert again.hours == pytest.approx(found.hours * 4 / 3)
    assert plan(gpu=None, memory="48GB").hours is None


def test_a_tokenizer_has_one_choice_and_no_hours():
    found = plan("avatars-tiny-vq", gpus=4)
    assert len(found.choices) == 1
    assert found.hours is None
    assert found.outline.tokens == 64
    assert "checkpointing" not in command(found, "avatars-tiny-vq")


@pytest.mark.parametrize(
    ("gpus", "start"),
    [
        (1, "aimamba train"),
        (8, "torchrun --standalone --nproc-per-node 8 -m aimamba train"),
        (16, "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d"),
        (4, "torchrun --standalone --nproc-per-node 4 -m aimamba train"),
    ],
)
def test_the_command(gpus, start):
    line = command(plan(gpus=gpus), "my recipe.toml", ["--data", "a b"])
    assert line.startswith(start)
    words = shlex.split(line)
    rest = words[words.index("train") + 1 :]
    assert rest[:3] == ["my recipe.toml", "--data", "a b"]
    assert ("parallel.shard=1" in rest) == ("parallel.replicate=" in line) == (gpus > 1)


def test_the_settings_of_the_command_are_settings_of_a_recipe():
    words = shlex.split(command(plan(gpus=1), "aim-b-imagenet256"))
    settings = dict(word.split("=") for word in words if "=" in word)
    recipe = load_recipe("aim-b-imagenet256", settings)
    assert recipe.fit.accumulation == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 0}, "--gpus must be 1 to 4,096, got 0"),
        ({"gpus": -1}, "--gpus must be"),
        ({"gpus": 5000}, "--gpus must be"),
        ({"gpus": 8, "shard": 3}, "--shard must divide --gpus = 8, got 3"),
        ({"gpus": 8, "shard": 0}, "--shard must divide"),
        ({"settings": {"fit.cuda_graph": True}}, "fit.cuda_graph records the step of one process, and there are 8"),
        (
            {"settings": {"fit.cuda_graph": True, "fit.batch_size": 6000}, "gpus": 1, "memory": "16GB"},
            "fit.cuda_graph records a batch in one part, and of 6,000 images",
        ),
        ({"settings": {"fit.compile": True}}, "fit.compile = true compiles the model of one process, and there are 8"),
        (
            {"name": "distill-guidance", "settings": {"fit.compile": True}, "gpus": 1},
            "fit.compile would not compile the frozen copy of task.objective = 'distillation'; set it to false",
        ),
        (
            {"name": "cca", "settings": {"fit.batch_size": 1}, "gpus": 1},
            "task.objective = 'cca' contrasts the images of a part of a batch, and .* is 1; it must be at least 2",
        ),
        (
            {"settings": {"task.random_order": 1, "task.random_order_until": 9, "model.positions": "none"}},
            "task.random_order needs learned positions",
        ),
        ({"gpus": 3}, "fit.batch_size must be a multiple of --gpus = 3, got 2048"),
        ({"tokens_per_second": 0.0}, "--tokens-per-second must be positive"),
        ({"tokens_per_second": float("nan")}, "--tokens-per-second must be positive"),
        ({"memory": "2GB", "gpu": None}, "not even one image fits: a GPU with 2GB has 1.9 GiB"),
    ],
)
def test_what_cannot_be_planned(options, message):
    with one_line_error(ConfigError, match=message):
        plan(**options)


@pytest.mark.parametrize("limit", [50, 99, 100, 101, 1234, 10**6])
def test_the_largest_number_is_found_in_few_calls(limit):
    calls = []

    def total(images):
        calls.append(images)
        return 90 + 10 * images + 3 * min(images, 20)

    found = _largest(total, limit, 8)
    best = next((n for n in range(1 << 16, 0, -1) if 90 + 10 * n + 3 * min(n, 20) <= limit), 0)
    assert 0.98 * best <= found <= best
    assert len(calls) < 12


def test_a_plan_may_fill_less_than_the_whole_memory():
    assert 0.9 * 79.1 * GIB < usable(CARDS["h100-80gb"]) < 79.1 * GIB
