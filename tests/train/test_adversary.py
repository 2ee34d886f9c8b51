"""The tokenizer trained with a perceptual loss and a discriminator, by the training loop."""

import math
import os
import signal

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from aimamba.data.loader import Batch
from aimamba.errors import CheckpointError, ConfigError
from aimamba.models import VQConfig, VQModel
from aimamba.models.gan import Discriminator
from aimamba.train import tokenizer as tokenizer_module
from aimamba.train.checkpoint import read_checkpoint
from aimamba.train.fit import FitConfig, fit
from aimamba.train.interruption import Interrupted
from aimamba.train.task import Auxiliary
from aimamba.train.tokenizer import TokenizerTask, TokenizerTaskConfig

SHAPE = VQConfig(
    channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=16, codebook_dim=4, norm_groups=4
)
ALL_ON = {
    "perceptual_weight": 1.0,
    "perceptual_side": 32,
    "adversarial_weight": 0.5,
    "adversarial_start": 2,
    "discriminator_channels": 4,
    "discriminator_layers": 1,
    "discriminator_lr": 2e-3,
}
ADVERSARIAL = ("adversarial", "discriminator", "real_logits", "drawn_logits")


class Blots:
    """Images of a white square somewhere on a coloured ground."""

    class_names = ("light", "dark")
    size = 16

    def __init__(self, number: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = np.arange(number) % 2
        self.images = np.empty((number, 16, 16, 3), dtype=np.uint8)
        self.images[:] = rng.integers(100, 255, (number, 1, 1, 3)) // (1 + self.labels[:, None, None, None])
        for image, (top, left) in zip(self.images, rng.integers(0, 10, (number, 2)), strict=True):
            image[top : top + 6, left : left + 6] = 255

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        return self.images[index]


def make_task(cls=TokenizerTask, **changes) -> TokenizerTask:
    model = VQModel(SHAPE)
    model.init_weights(torch.Generator().manual_seed(0))
    return cls(model, Blots(24), Blots(6, seed=1), TokenizerTaskConfig(**changes), seed=5)


def settings(**changes) -> FitConfig:
    base = {"steps": 6, "batch_size": 4, "lr": 1e-3, "ema_decay": 0.9, "checkpoint_every": 2, "log_every": 1}
    return FitConfig(**{**base, **changes})


def first_batch(task: TokenizerTask) -> Batch:
    return next(task.batches(0, 4))


def loss_of(task: TokenizerTask, step: int):
    return task.loss(task.model, first_batch(task), torch.Generator().manual_seed(0), step)


@pytest.mark.parametrize(
    ("precision", "more", "stop"),
    [
        ("float32", {}, 1),
        ("float32", {"adversarial_adaptive": True}, 3),
        ("bfloat16", {}, 3),
        ("bfloat16", {"adversarial_adaptive": True}, 1),
    ],
)
def test_six_steps_are_three_and_three(tmp_path, precision, more, stop, metrics):
    """Bit for bit, with the discriminator and its optimiser; stopped before and after its start."""

    class Stopping(TokenizerTask):
        def loss(self, model, batch, rng, step=0):
            if step == stop - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(model, batch, rng, step)

    config = settings(precision=precision)
    fit(make_task(**ALL_ON, **more), config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(make_task(Stopping, **ALL_ON, **more), config, tmp_path / "parts")
    assert read_checkpoint(tmp_path / "parts/checkpoint.pt").step == stop
    fit(make_task(**ALL_ON, **more), config, tmp_path / "parts")

    whole, parts = (read_checkpoint(tmp_path / name / "checkpoint.pt").parts for name in ("whole", "parts"))
    assert {"adversary", "adversary optimizer"} <= whole.keys()
    assert len(whole["adversary optimizer"]["state"]) == len(whole["adversary"])
    assert_close(parts, whole, rtol=0, atol=0)
    for split in ("train", "held-out"):
        assert metrics(tmp_path / "parts", split) == metrics(tmp_path / "whole", split)


def test_before_its_start_the_discriminator_neither_runs_nor_learns(tmp_path, monkeypatch, metrics):
    ran = []
    monkeypatch.setattr(Discriminator, "forward", lambda *_: ran.append(1))
    task = make_task(**ALL_ON | {"adversarial_start": 6})
    before = {name: tensor.clone() for name, tensor in task.discriminator.state_dict().items()}
    fit(task, settings(), tmp_path)
    assert not ran
    assert_close(dict(task.discriminator.state_dict()), before, rtol=0, atol=0)
    assert not read_checkpoint(tmp_path / "checkpoint.pt").parts["adversary optimizer"]["state"]
    assert not any(name in line for line in metrics(tmp_path, "train") for name in ADVERSARIAL)


def test_before_its_start_the_discriminator_changes_nothing(tmp_path, metrics):
    fit(make_task(), settings(steps=2), tmp_path / "without")
    fit(make_task(adversarial_weight=0.5, adversarial_start=2, discriminator_layers=1), settings(), tmp_path / "with")
    for one, other in zip(metrics(tmp_path / "without", "train"), metrics(tmp_path / "with", "train"), strict=False):
        assert one["loss"] == other["loss"]


def test_the_discriminator_may_learn_before_its_loss_counts(tmp_path, metrics):
    with_it = {**ALL_ON, "perceptual_weight": 0.0, "discriminator_start": 1, "adversarial_start": 4}
    fit(make_task(), settings(), tmp_path / "without")
    fit(make_task(**with_it), settings(), tmp_path / "with")
    plain, found = (metrics(tmp_path / name, "train") for name in ("without", "with"))
    alone = set(ADVERSARIAL) - {"adversarial"}
    assert [alone <= line.keys() for line in found] == [False] + 5 * [True]
    assert ["adversarial" in line for line in found] == 4 * [False] + 2 * [True]
    assert [line["adversary_gradient_norm"] > 0 for line in found] == [False] + 5 * [True]
    losses, expected = ([line["loss"] for line in lines] for lines in (found, plain))
    assert losses[:4] == pytest.approx(expected[:4], rel=1e-6)
    assert losses[4] != pytest.approx(expected[4], rel=1e-3)
    assert found[3]["discriminator"] < found[1]["discriminator"], "it learns"


def test_metrics_name_every_loss(tmp_path, metrics):
    result = fit(make_task(**ALL_ON, adversarial_adaptive=True), settings(), tmp_path)
    early, late = metrics(tmp_path, "train")[1], metrics(tmp_path, "train")[2]
    assert early.keys() == {
        "step", "loss", "gradient_norm", "adversary_gradient_norm", "l1", "l2", "quantizer", "perceptual", "lr",
    }  # fmt: skip
    assert early["adversary_gradient_norm"] == 0
    assert late.keys() == early.keys() | {*ADVERSARIAL, "adaptive_weight"}
    assert late["adversary_gradient_norm"] > 0
    expected = late["l2"] + late["quantizer"] + late["perceptual"]  # without the discriminator's own loss
    expected += 0.5 * late["adaptive_weight"] * late["adversarial"]
    assert late["loss"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics.keys() == {"reconstruction", "l2", "psnr", "codes_used", "perplexity", "perceptual"}


def test_without_perceptual_and_adversarial_losses_there_is_no_trace_of_them(tmp_path, metrics):
    task = make_task()
    assert task.auxiliary() is None
    assert task.perceptual is None
    result = fit(task, settings(), tmp_path)
    assert metrics(tmp_path, "train")[0].keys() == {"step", "loss", "gradient_norm", "l1", "l2", "quantizer", "lr"}
    assert result.metrics.keys() == {"reconstruction", "l2", "psnr", "codes_used", "perplexity"}
    assert not any("adversary" in name for name in read_checkpoint(tmp_path / "checkpoint.pt").parts)


def test_a_small_codebook_on_few_images_is_used(tmp_path):
    result = fit(make_task(l1_weight=1.0), settings(steps=30, batch_size=8, lr=3e-3), tmp_path)
    assert result.metrics["codes_used"] > 0.9, "a quarter of it without revival"


def test_the_discriminator_has_its_own_optimiser(tmp_path):
    task = make_task(**ALL_ON | {"adversarial_start": 0})
    assert task.auxiliary() == Auxiliary(name="adversary", network=task.discriminator, lr=2e-3)
    before = {name: tensor.clone() for name, tensor in task.discriminator.named_parameters() if tensor.ndim > 1}
    fit(task, settings(lr=1e-4, warmup_steps=6, steps=3 + 3, clip_norm=0.0), tmp_path)
    assert not any(torch.equal(task.discriminator.get_parameter(name), before[name]) for name in before)
    parts = read_checkpoint(tmp_path / "checkpoint.pt").parts
    groups = parts["adversary optimizer"]["param_groups"]
    assert [group["betas"] for group in groups] == [(0.9, 0.95)] * 2
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]
    assert [group["lr"] for group in groups] == pytest.approx([2e-3] * 2), "at the end of the warm-up"
    assert [group["lr"] for group in parts["optimizer"]["param_groups"]] == pytest.approx([1e-4] * 2)
    assert parts["model"].keys() == parts["average"]["model"].keys() == VQModel(SHAPE).state_dict().keys()


def test_no_gradient_crosses_over():
    """The model's gradients come from its losses only, the discriminator's from its own loss only."""
    task = make_task(**ALL_ON | {"perceptual_weight": 0.0, "adversarial_start": 0})
    loss_of(task, 0)  # revives the codes, once
    loss_of(task, 0)[0].backward()
    model = {name: parameter.grad.clone() for name, parameter in task.model.named_parameters()}
    discriminator = {name: parameter.grad.clone() for name, parameter in task.discriminator.named_parameters()}
    assert all(bool(gradient.any()) for gradient in discriminator.values() if gradient.ndim > 1)

    silent = make_task(**ALL_ON | {"perceptual_weight": 0.0, "adversarial_start": 0, "adversarial_weight": 1e-12})
    loss_of(silent, 0)
    loss_of(silent, 0)[0].backward()
    for name, parameter in silent.discriminator.named_parameters():
        assert_close(parameter.grad, discriminator[name])
    plain = make_task()
    loss_of(plain, 0)
    loss_of(plain, 0)[0].backward()
    for name, parameter in plain.model.named_parameters():
        assert_close(silent.model.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(model["decoder.head.weight"], plain.model.decoder.head.weight.grad)


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer():
    task = make_task(**ALL_ON, adversarial_adaptive=True)
    loss_of(task, 2)
    _, report = loss_of(task, 2)
    last = task.model.decoder.head.weight

    def length(**changes) -> float:
        other = make_task(**{"l2_weight": 0.0, "codebook_weight": 0.0, "discriminator_layers": 1, **changes})
        loss_of(other, 2)
        if other.discriminator is not None:
            other.discriminator.load_state_dict(task.discriminator.state_dict())
        (gradient,) = torch.autograd.grad(loss_of(other, 2)[0], other.model.decoder.head.weight)
        assert gradient.shape == last.shape
        return float(gradient.norm())

    likeness = length(l2_weight=1.0, perceptual_weight=1.0, perceptual_side=32)
    against = length(adversarial_weight=1.0, adversarial_start=0, discriminator_channels=4)
    assert float(report["adaptive_weight"]) == pytest.approx(likeness / (against + 1e-4), rel=1e-4)


def test_in_evaluation_mode_there_is_no_adversarial_loss():
    task = make_task(**ALL_ON)
    task.model.eval()
    assert not set(ADVERSARIAL) & loss_of(task, 2)[1].keys()


def test_a_step_with_a_discriminator_gradient_that_is_not_finite_is_skipped(tmp_path, metrics):
    task = make_task(**ALL_ON | {"adversarial_start": 0})
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * (math.nan if len(calls) == 2 else 1.0)

    task.discriminator.layers[0].weight.register_hook(spoil)
    fit(task, settings(), tmp_path)
    assert read_checkpoint(tmp_path / "checkpoint.pt").parts["average"]["updates"] == 5
    assert all(bool(parameter.isfinite().all()) for parameter in task.discriminator.parameters())
    assert "loss" not in metrics(tmp_path, "train")[1]


def test_a_step_with_a_discriminator_loss_that_is_not_finite_is_skipped(tmp_path, monkeypatch, capsys, metrics):
    losses, calls = tokenizer_module.adversarial_losses, []

    def spoiled(*arguments):
        calls.append(1)
        generator, discriminator, *rest = losses(*arguments)
        return generator, discriminator + (math.inf if len(calls) == 2 else 0.0), *rest

    monkeypatch.setattr(tokenizer_module, "adversarial_losses", spoiled)
    fit(make_task(**ALL_ON | {"adversarial_start": 0}), settings(), tmp_path)
    assert "step 2 is skipped: its loss is " in capsys.readouterr().err
    assert "loss" not in metrics(tmp_path, "train")[1]
    assert "loss" in metrics(tmp_path, "train")[2]


def test_accumulation_trains_both(tmp_path, metrics):
    task = make_task(**ALL_ON | {"adversarial_start": 0})
    before = task.discriminator.layers[0].weight.clone()
    fit(task, settings(accumulation=2), tmp_path)
    assert not torch.equal(task.discriminator.layers[0].weight, before)
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path, "train"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"perceptual_weight": -1.0}, "perceptual_weight must not be negative"),
        ({"adversarial_weight": -0.5}, "adversarial_weight must not be negative"),
        ({"adversarial_start": -1}, "adversarial_start must not be negative"),
        ({"perceptual_side": 0}, "perceptual_side must be at least 1"),
        ({"discriminator_lr": 0.0}, "discriminator_lr must be positive"),
        ({"discriminator_channels": 0}, "discriminator_channels must be at least 1"),
        ({"discriminator_layers": 0}, "discriminator_layers must be at least 1"),
    ],
)
def test_settings_out_of_range_are_named(wrong, says):
    with pytest.raises(ConfigError, match=rf"task\.{says}, got"):
        TokenizerTaskConfig(**wrong)


def test_impossible_settings_are_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"discriminator_layers = 3 needs images of at least 24 pixels, got 16"):
        make_task(adversarial_weight=0.5)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        make_task(perceptual_weight=1.0, perceptual=str(tmp_path / "vgg16.pth"))
    make_task(perceptual=str(tmp_path / "vgg16.pth"))  # not used
