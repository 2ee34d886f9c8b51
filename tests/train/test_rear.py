"""reAR: random codes that become fewer, and heads that learn codebook vectors from hidden states."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ranks_task import Generator, settings
from test_training_step import Recorder
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.checkpoints.weights import read_tensors
from aimamba.data.codes import CodeBatch
from aimamba.errors import ConfigError
from aimamba.models import VQModel
from aimamba.train.generator import GeneratorTask, code_cross_entropy
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.optim import Learner, adamw
from aimamba.train.plan.on_paper import Place
from aimamba.train.plan.outline import outline
from aimamba.train.rear import CodeNoise
from aimamba.train.recipe import DataConfig, Recipe, load_recipe
from aimamba.train.settings import FitConfig
from aimamba.train.stages import make_task
from aimamba.train.step import RecordedStep, TrainingStep, check_recordable
from refusals import one_line_error

ALL = {"rear_weight": 0.5, "code_noise": 0.4, "code_noise_until": 4, "code_noise_end": 0.1, "code_noise_varied": True}
EXACT = {"rtol": 0, "atol": 0}


def batch_of(images=8):
    generator = torch.Generator().manual_seed(5)
    return CodeBatch(
        torch.randint(16, (images, 16), generator=generator), torch.randint(3, (images,), generator=generator)
    )


@pytest.mark.parametrize(("step", "share"), [(0, 0.4), (5, 0.25), (10, 0.1), (1000, 0.1)])
def test_the_share_of_random_codes_falls_linearly(step, share):
    noise = CodeNoise(0.4, 0.1, 10)
    assert noise.share(step) == pytest.approx(share)
    assert float(noise.share(torch.tensor(step))) == pytest.approx(share)
    assert CodeNoise(0.4).share(step) == 0.4


def test_constant_noise_is_what_it_was(rng):
    codes, old = torch.full((50, 20), 7), rng(3)
    replaced = torch.rand((50, 20), generator=old) < 0.3
    expected = torch.where(replaced, (torch.rand((50, 20), generator=old) * 24).long(), codes)
    assert torch.equal(CodeNoise(0.3).replace(codes, 24, rng(3), 100), expected)
    assert CodeNoise(0.0).replace(codes, 24, rng(3), 0) is codes


def test_images_can_have_shares_of_their_own(rng):
    changed = CodeNoise(0.8, varied=True).replace(torch.full((400, 500), 7), 1000, rng(), 0) != 7
    shares = changed.float().mean(dim=1)
    assert float(shares.mean()) == pytest.approx(0.4, abs=0.03)
    assert float(shares.std()) == pytest.approx(0.8 / math.sqrt(12), abs=0.03)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_are_those_of_the_forward_pass_and_do_not_change_it(make_aim, rng, checkpointing):
    model = make_aim(num_blocks=3).train()
    codes, labels = torch.randint(24, (4, 8), generator=rng()), torch.tensor([0, 1, 2, 5])
    entered = []
    hooks = [block.register_forward_pre_hook(lambda _, given: entered.append(given[:3])) for block in model.blocks]
    plain = model(codes, labels, head=False)
    for hook in hooks:
        hook.remove()
    states = {1: None, 3: None}
    assert torch.equal(model(codes, labels, head=False, checkpointing=checkpointing, states=states), plain)
    residual, mixed, gate = entered[1]
    assert_close(states[1], residual + gate[:, None] * mixed)
    final = model.modulations(model.condition.opening(labels, None)[:, -1])[1]
    shift, scale = final[:, None].unbind(2)
    assert_close(model.final_norm(model.norm(states[3])) * (1 + scale) + shift, plain)


def test_the_heads_learn_and_the_model_learns_from_them(rng):
    task = Generator(**ALL)
    total, report = task.loss(task.model.train(), batch_of(), rng(), 0)
    assert report.keys() == {"loss", "vector_recovery", "vector_prediction"}
    assert total.item() == pytest.approx(
        float(report["loss"]) + 0.5 * float(report["vector_recovery"] + report["vector_prediction"])
    )
    total.backward()
    for network in (task.heads, task.model):
        assert all(bool(weight.grad.any()) for weight in network.parameters())
    task.model.zero_grad()
    states = task.heads.empty_states()
    code_cross_entropy(task.model, *batch_of(), states=states)
    task.heads.losses(states, batch_of().codes)["vector_prediction"].backward()
    assert bool(task.model.blocks[0].mixer.in_proj.weight.grad.any())
    assert not task.tokenizer.codebook.grad


def test_the_vectors_are_those_of_the_codes_read_last_and_next():
    task, codes = Generator(rear_weight=1.0), batch_of().codes
    vectors = F.embedding(codes, F.normalize(task.tokenizer.codebook, dim=-1)).detach()
    late = vectors
    early = torch.cat([torch.ones_like(vectors[:, :1]), vectors[:, :-1]], dim=1)
    heads = task.heads
    assert (heads.recover_after, heads.predict_after) == (1, 2)
    heads.recover = heads.predict = torch.nn.Identity()
    found = heads.losses({1: early, 2: late}, codes)
    assert_close(torch.stack(list(found.values())), torch.zeros(2), rtol=0, atol=1e-6)
    swapped = heads.losses({1: late, 2: early}, codes)
    assert all(float(value) > 0.1 for value in swapped.values())


def test_without_weight_there_are_neither_heads_nor_other_numbers(rng):
    task = Generator(label_dropout=0.0, token_dropout=0.0)
    assert task.auxiliary() is None
    loss, report = task.loss(task.model, batch_of(), rng(), 3)
    assert report == {}
    assert torch.equal(loss, code_cross_entropy(task.model, *batch_of()))
    weighted = Generator(label_dropout=0.0, token_dropout=0.0, rear_weight=0.5)
    assert torch.equal(weighted.loss(weighted.model, batch_of(), rng(), 3)[1]["loss"], loss)
    assert weighted.evaluate(weighted.model) == task.evaluate(task.model)


def test_a_stopped_run_continues_exactly_and_saves_no_heads(tmp_path, metrics, continued):
    whole, halves = continued(**ALL)
    assert {"vector_heads", "vector_heads optimizer"} <= whole.keys()
    assert "vectors" not in whole["vector_heads"]
    assert_close(halves, whole, **EXACT)
    plain = Generator()
    assert not torch.equal(
        whole["vector_heads"]["recover.1.weight"], Generator(**ALL).heads.state_dict()["recover.1.weight"]
    )
    [saved] = (tmp_path / "whole").glob("model/generator/*.safetensors")
    assert read_tensors(saved).keys() == plain.model.state_dict().keys()
    line = metrics(tmp_path / "whole", "train")[0]
    assert {"loss", "vector_recovery", "vector_prediction", "vector_heads_gradient_norm"} <= line.keys()
    assert metrics(tmp_path / "whole", "held-out")[0].keys() == {"step", "loss", "bits_per_token"}


def plain_and_recorded(**options):
    """Losses, gradient norms and metrics of seven steps that hardly change a tiny generator, (2, 7, values)."""
    found = []
    for kind in (TrainingStep, RecordedStep):
        task, config = Generator(**options), settings(lr=1e-9, ema_decay=0.0)
        networks = [task.model.train(), task.auxiliary().network]
        learners = [
            Learner(network, adamw(network, lr=1e-9, betas=(0.9, 0.95), weight_decay=0.0), 1e-9) for network in networks
        ]
        trained = SimpleNamespace(model=torch.nn.ModuleList(networks))
        recorder = {"record": Recorder(trained)} if kind is RecordedStep else {}
        step = kind(task.loss, task.model, learners, config, torch.device("cpu"), "float32", **recorder)
        taken = [step.take([batch_of()], number, 1e-9) for number in range(7)]
        found.append([[*values.tolist(), *map(float, report.values())] for values, (report,) in taken])
    return torch.tensor(found)


def test_a_recorded_step_has_the_noise_of_its_number():
    plain, recorded = plain_and_recorded(**ALL)
    assert_close(recorded, plain, rtol=1e-4, atol=1e-5)
    check_recordable(Generator(**ALL), torch.device("cuda"))


def test_a_plan_counts_the_heads():
    plain, heads = (outline(load_recipe("avatars-tiny-aim", {"task.rear_weight": w})) for w in (0.0, 1.0))
    model, vectors = load_recipe("avatars-tiny-aim").model["width"], load_recipe("avatars-tiny-vq").model
    of_one = 2 * model * model + 2 * model + (2 * model + 1) * vectors.get("codebook_dim", 8)
    assert heads.trained - plain.trained == 2 * of_one
    assert (heads.parameters, heads.averaged) == (plain.parameters, plain.averaged)
    needs = [each.trace(16, Place(), False) for each in (plain, heads)]
    assert needs[1].activations > needs[0].activations
    assert needs[1].gradients - needs[0].gradients == 4 * 2 * of_one


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rear_weight": -1.0}, "task.rear_weight must be at least 0, got -1.0"),
        ({"rear_weight": math.inf}, "task.rear_weight"),
        ({"rear_recover_after": 0}, "task.rear_recover_after must be at least 1"),
        ({"rear_predict_after": -1}, "task.rear_predict_after"),
        ({"code_noise_until": -1}, "task.code_noise_until"),
        ({"code_noise": 1.0}, "task.code_noise must lie in"),
        ({"code_noise": 0.2, "code_noise_until": 9, "code_noise_end": 0.3}, "task.code_noise_end must lie between"),
        ({"code_noise": 0.2, "code_noise_end": 0.1}, "needs task.code_noise_until"),
        ({"code_noise": math.nan}, "task.code_noise"),
    ],
)
def test_settings_out_of_range_are_refused(values, named):
    with one_line_error(ConfigError, named):
        GeneratorTaskConfig(**values)


def test_heads_that_do_not_fit_are_refused():
    with one_line_error(ConfigError, "task.rear_predict_after must be at most 2"):
        Generator(rear_weight=1.0, rear_predict_after=3)
    task, config = Generator(), GeneratorTaskConfig(rear_weight=1.0)
    tokenizer = VQModel(replace(task.tokenizer.config, codebook_size=5))
    with one_line_error(ConfigError, "has 5 codes, and the generator 16"):
        GeneratorTask(task.model, tokenizer, task.train, task.held_out, ("a", "b", "c"), config)


def test_a_whole_compiled_model_is_refused(tmp_path):
    fit = FitConfig(steps=1, batch_size=1, lr=1e-3, compile=True)
    recipe = Recipe(stage="generator", data=DataConfig(), fit=fit, task={"tokenizer": "x", "rear_weight": 1.0})
    with one_line_error(ConfigError, "task.rear_weight was not tried with fit.compile = true"):
        make_task(recipe, device=torch.device("cpu"))
