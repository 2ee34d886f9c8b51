"""What every mixer has beyond its steps: generated batches, adapters, saved models, a plan, and a line of its own."""

import dataclasses
import json

import pytest
import torch
from torch.testing import assert_close

from aimamba.generation import SamplingConfig, generate, make_engine
from aimamba.generation.engines import native, recorded_step
from aimamba.models import AiM

MIXERS = {
    "mamba3": {"mixer": "mamba3"},
    "gated-deltanet": {"mixer": "gated-deltanet", "expand": 1.5},
    "mamba2 with attention": {"hybrid_every": 2, "positions": "rope"},
    "gated-deltanet with mamba3": {"mixer": "gated-deltanet", "hybrid_every": 2, "hybrid_mixer": "mamba3"},
}


@pytest.fixture(params=MIXERS)
def model(request, make_aim):
    return make_aim(**MIXERS[request.param])


def test_the_kinds_of_a_hybrid(make_aim):
    model = make_aim(num_blocks=5, hybrid_every=2)
    assert model.config.block_mixers == ("mamba2", "attention", "mamba2", "attention", "mamba2")
    assert [type(block.mixer).__name__ for block in model.blocks] == ["Mamba2", "Attention"] * 2 + ["Mamba2"]


def test_images_do_not_depend_on_their_batch(model):
    """Conditional and unconditional rows leave at different steps, and images are at guidance of their own."""
    labels, settings = [0, 3, 1], [SamplingConfig(cfg_scale=2.0, cfg_end=0.5), SamplingConfig(), SamplingConfig(seed=4)]
    *_, together = generate(model, torch.tensor(labels), settings)
    for row, (label, config) in enumerate(zip(labels, settings, strict=True)):
        *_, alone = generate(model, torch.tensor([label]), config)
        assert torch.equal(together[row : row + 1], alone)
    assert len({tuple(codes) for codes in together.tolist()}) == 3


def test_a_row_that_restarts_is_as_one_that_begins(model):
    state = model.init_state(2)
    with torch.no_grad():
        for inputs in ([0, 1], [3, 4], [5, 6]):
            model.step(torch.tensor(inputs), state)
        state.restart(1)
        again = model.step(torch.tensor([7, 2]), state)[1]
        assert_close(again, model.step(torch.tensor([2]), model.init_state(1))[0])


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["mixer"], saved["hybrid_every"]) == (model.config.mixer, model.config.hybrid_every)
    loaded = AiM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    codes, labels = torch.arange(8)[None], torch.tensor([1])
    with torch.no_grad():
        assert torch.equal(loaded(codes, labels), model(codes, labels))


def test_engines_that_cannot_decode_it_say_why_and_auto_takes_plain(model):
    kinds = dict.fromkeys(model.config.block_mixers)
    others = " and ".join(sorted(set(kinds) - {"mamba2"}))
    assert native.unsupported(model) == f"it decodes the mixer mamba2, not {others}"
    assert recorded_step.unsupported(model) == f"it decodes the mixer mamba2 or attention, not {' with '.join(kinds)}"
    assert make_engine(model, "auto") is model


def test_blocks_of_a_hybrid_that_are_not_traced_are_like_those_that_are(monkeypatch):
    from aimamba.train.plan import outline
    from aimamba.train.plan.on_paper import Place
    from aimamba.train.recipe import load_recipe

    of = outline.outline(load_recipe("avatars-tiny-aim", {"model.num_blocks": 10, "model.hybrid_every": 2}))
    few = of.trace(8, Place(), False)
    monkeypatch.setattr(outline, "_FEW", 5)  # all of them
    assert dataclasses.astuple(few) == pytest.approx(dataclasses.astuple(of.trace(8, Place(), False)), rel=0.01)


@pytest.mark.parametrize("settings", [*MIXERS.values(), {"mixer": "attention"}], ids=[*MIXERS, "attention"])
def test_low_rank_matrices_reach_every_layer(make_aim, settings):
    pytest.importorskip("peft")
    from aimamba.models.lora import add_lora, merged

    model = make_aim(**settings)
    add_lora(model, rank=2, alpha=2.0, layers=("in_proj", "out_proj"))
    matrices = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    assert len(matrices) == 2 * 2 * model.config.num_blocks
    for name, weight in matrices.items():
        if "lora_B" in name:
            weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    codes, labels = torch.arange(8)[None], torch.tensor([1])
    logits = model(codes, labels)
    logits.square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in matrices.values())
    with torch.no_grad():
        assert_close(merged(model)(codes, labels), logits, rtol=1e-4, atol=1e-4)
