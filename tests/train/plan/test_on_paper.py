"""The memory of a step, computed on the meta device, against what was measured."""

import dataclasses

import pytest
import torch

from aimamba.models import AIM_PRESETS, VQConfig, VQModel
from aimamba.train.plan.on_paper import Place, needs
from aimamba.train.plan.outline import outline
from aimamba.train.plan.plan import step_memory
from aimamba.train.recipe import load_recipe

GIB = 2**30
H200 = Place(cuda=True, narrow=True, memory=round(139.8 * GIB))

# Peaks of PyTorch's allocator on one H200 on 2026-11-28 with 32 x 256 codes in bfloat16, in GiB:
# python -m benchmarks --device cuda --only training
MEASURED = {"aim-b": 4.83, "aim-l": 11.8, "aim-xl": 18.7}
MEASURED_WITH_OPTIMIZER = {"aim-b": 6.49}


def of_preset(name, **settings):
    return outline(load_recipe(f"{name}-imagenet256", settings))


@pytest.mark.parametrize("name", MEASURED)
def test_forward_and_backward_pass_within_fifteen_percent_of_an_h200(name):
    of = of_preset(name)
    planned = (4 * of.parameters + of.trace(32, H200, False).peak) / GIB
    assert planned == pytest.approx(MEASURED[name], rel=0.15)


@pytest.mark.parametrize("name", MEASURED_WITH_OPTIMIZER)
def test_a_whole_step_within_fifteen_percent_of_an_h200(name):
    of = of_preset(name)
    memory = step_memory(of, of.trace(32, H200, False), average=True, narrow=True)
    assert memory.total / GIB == pytest.approx(MEASURED_WITH_OPTIMIZER[name], rel=0.15)


def test_sizes_of_the_parts_of_aim_b():
    of = of_preset("aim-b")
    assert of.parameters == of.trained == of.averaged == 147_622_080
    memory = step_memory(of, of.trace(32, H200, False), average=True, narrow=True)
    weights = 4 * 147_622_080
    assert (memory.parameters, memory.gradients, memory.average) == (weights, weights, weights)
    assert memory.optimizer == 2 * weights
    assert memory.narrow == pytest.approx(weights / 2, rel=0.15)  # not of embeddings, which are looked up in float32


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_that_are_not_traced_are_like_those_that_are(checkpointing, monkeypatch):
    of = of_preset("aim-b", **{"model.num_blocks": 14})
    few = of.trace(8, H200, checkpointing)
    monkeypatch.setattr("aimamba.train.plan.outline._FEW", 7)  # all of them
    every = of.trace(8, H200, checkpointing)
    assert dataclasses.astuple(few) == pytest.approx(dataclasses.astuple(every), rel=0.01)


def test_computing_activations_again_keeps_fewer():
    of = of_preset("aim-b")
    kept, again = (of.trace(32, H200, checkpointing).activations for checkpointing in (False, True))
    assert again < 0.5 * kept


def test_float32_needs_more_than_bfloat16():
    of = of_preset("aim-b", **{"model.num_blocks": 4})
    wide = of.trace(8, dataclasses.replace(H200, narrow=False), False)
    assert wide.casts == 0
    assert wide.activations > 1.8 * of.trace(8, H200, False).activations


def test_a_long_sequence_needs_the_plain_mixer():
    kept = {}
    for tokens in (1024, 1296):
        of = of_preset("aim-b", **{"model.num_tokens": tokens, "model.num_blocks": 8, "model.vocab_size": 256})
        kept[tokens] = of.trace(1, H200, False).activations / tokens
    assert kept[1296] > 1.3 * kept[1024]


def test_autocast_narrows_the_products_of_a_tokenizer_and_not_its_norms():
    with torch.device("meta"):
        model = VQModel(VQConfig(channels=32, channel_mult=(1, 2), z_channels=32, codebook_size=64)).train()
    seen = {}

    def note(name):
        return lambda _module, _inputs, output: seen.update({name: output.dtype})

    model.encoder.stem.register_forward_hook(note("convolution"))
    model.encoder.norm.register_forward_hook(note("norm"))

    def loss():
        return model(torch.empty(2, 3, 32, 32, device="meta")).images.sum()

    found = needs([model], loss, H200)
    assert seen == {"convolution": torch.bfloat16, "norm": torch.float32}
    assert 0 < found.casts < found.gradients / 2 + 1
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    "task", [{}, {"perceptual_weight": 1.0}, {"perceptual_weight": 1.0, "adversarial_weight": 0.5}]
)
def test_every_loss_of_a_tokenizer_needs_more(task):
    settings = {f"task.{name}": 0.0 for name in ("perceptual_weight", "adversarial_weight")}
    with_less = outline(load_recipe("vq-f16-imagenet256", settings | {"data.size": 64}))
    of = outline(
        load_recipe("vq-f16-imagenet256", settings | {f"task.{k}": v for k, v in task.items()} | {"data.size": 64})
    )
    assert (of.trace(2, H200, False).peak > with_less.trace(2, H200, False).peak) == bool(task)
    assert (of.trained > of.parameters) == ("adversarial_weight" in task)
    assert (of.frozen > 0) == bool(task)


def test_presets_are_those_of_the_recipes():
    assert set(MEASURED) < set(AIM_PRESETS)
