"""The discriminator: its shape, its losses, who gets which gradient, the adaptive weight."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.errors import ConfigError
from aimamba.models.gan import (
    Discriminator,
    DiscriminatorConfig,
    adaptive_weight,
    adversarial_losses,
    discriminator_hinge,
    generator_hinge,
)


def make(seed=0, **settings) -> Discriminator:
    discriminator = Discriminator(DiscriminatorConfig(**{"channels": 4, "layers": 2, **settings}))
    discriminator.init_weights(torch.Generator().manual_seed(seed))
    return discriminator


def make_images(side=16, batch=4, seed=0):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_default_is_that_of_pix2pix():
    with torch.device("meta"):
        discriminator = Discriminator(DiscriminatorConfig())
        logits = discriminator(torch.empty(2, 3, 256, 256))
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633
    assert logits.shape == (2, 30, 30)
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [module.stride[0] for module in convolutions] == [2, 2, 2, 1, 1]
    assert [module.bias is not None for module in convolutions] == [True, False, False, False, True]


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_as_much_as_said(layers, field):
    discriminator = make(layers=layers)
    for module in discriminator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = lambda x: x  # in a batch all sees all
    side = 2 * field
    images = make_images(side, batch=1).requires_grad_()
    logits = discriminator(images)
    logits[0, logits.shape[1] // 2, logits.shape[2] // 2].backward()
    seen = images.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [field, field]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_images_leave_a_logit_and_smaller_ones_are_refused(layers):
    discriminator = make(layers=layers)
    side = discriminator.config.smallest_side
    assert discriminator(make_images(side)).shape == (4, 1, 1)
    with pytest.raises(ConfigError, match=f"need images of at least {side} pixels, got {side - 1} x {side - 1}"):
        discriminator(make_images(side - 1))


def test_initial_weights_come_from_the_generator_alone():
    first, second = make(seed=3, channels=64), make(seed=3, channels=64)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name
    assert not torch.equal(first.layers[0].weight, make(seed=4, channels=64).layers[0].weight)
    for module in first.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(float(isinstance(module, nn.BatchNorm2d)), abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.25)
            assert module.bias is None or not module.bias.any()


def test_it_keeps_nothing_but_its_parameters():
    discriminator = make()
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    expected = discriminator(make_images())
    assert_close(discriminator.eval()(make_images()), expected)
    assert_close(dict(discriminator.state_dict()), before, rtol=0, atol=0)


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert_close(discriminator_hinge(real, fake), torch.tensor(((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2))
    assert_close(generator_hinge(fake), torch.tensor(1 / 3))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_one_pass_trains_both_and_mixes_nothing(bfloat16):
    """The gradients of the sum are those that each player would get alone."""
    discriminator, images, fake = make(), make_images(seed=1), make_images(seed=2).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        result = adversarial_losses(discriminator, fake, images)
    (result.generator_loss + result.discriminator_loss).backward()
    got = {name: parameter.grad for name, parameter in discriminator.named_parameters()}
    assert all(parameter.requires_grad for parameter in discriminator.parameters())

    alone = make_images(seed=2).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        (to_image,) = torch.autograd.grad(generator_hinge(discriminator(alone)), alone)
        theirs = discriminator_hinge(discriminator(images), discriminator(alone.detach()))
    to_discriminator = torch.autograd.grad(theirs, tuple(discriminator.parameters()))
    assert fake.grad.any()
    assert_close(fake.grad, to_image)
    assert_close(list(got.values()), list(to_discriminator))
    assert not result.real_logits.requires_grad
    assert not result.fake_logits.requires_grad
    assert result.generator_loss.dtype == result.discriminator_loss.dtype == torch.float32
    assert_close(result.fake_logits, -result.generator_loss.detach())


def test_it_learns_to_tell():
    discriminator = make(channels=8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    for step in range(60):
        images = make_images(side=24, seed=step)
        result = adversarial_losses(discriminator, F.avg_pool2d(images, 3, stride=1, padding=1), images)
        optimizer.zero_grad()
        result.discriminator_loss.backward()
        optimizer.step()
    assert result.real_logits > result.fake_logits + 1
    assert result.discriminator_loss < 0.5


def test_the_adaptive_weight_is_the_quotient_of_gradients():
    layer = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight = adaptive_weight((layer * torch.tensor([3.0, 4.0])).sum(), 0.5 * layer[0], layer)
    assert_close(weight, torch.tensor(5 / (0.5 + 1e-4)))
    assert not weight.requires_grad
    assert adaptive_weight(1e6 * layer[0], 0.0 * layer[0], layer) == 1e4
    assert layer.grad is None


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"layers": 0}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be at least 1, got 0"):
        DiscriminatorConfig(**wrong)
