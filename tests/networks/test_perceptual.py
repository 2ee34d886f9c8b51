"""Perceptual distances: LPIPS against a small re-implementation, the default network, gradients, files."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.errors import CheckpointError, ConfigError
from aimamba.networks.efficientnet import efficientnet_lite0
from aimamba.networks.perceptual import PerceptualLoss, lpips_vgg16, perceptual_loss
from refusals import one_line_error

INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.fixture(scope="module")
def vgg() -> dict[str, torch.Tensor]:
    generator, tensors = torch.Generator().manual_seed(0), {}
    for index, before, after in zip(INDICES, WIDTHS, WIDTHS[1:], strict=False):
        weight = torch.randn(after, before, 3, 3, generator=generator)
        tensors[f"features.{index}.weight"] = weight * (2 / (9 * before)) ** 0.5
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(after, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def linear() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    widths = (64, 128, 256, 512, 512)
    return {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for i, w in enumerate(widths)}


@pytest.fixture(scope="module")
def lite0() -> PerceptualLoss:
    return perceptual_loss("lite0", smallest_side=64)


def pair(size=(32, 40), batch=2):
    generator = torch.Generator().manual_seed(2)
    images, targets = (2 * torch.rand(batch, 3, *size, generator=generator) - 1 for _ in range(2))
    return images, targets


def reference_lpips(vgg, linear, images, targets):
    """Zhang et al., eq. 1, with torchvision's layer list."""
    layers = nn.Sequential()
    for index in range(30):
        if f"features.{index}.weight" in vgg:
            weight = vgg[f"features.{index}.weight"]
            layers.append(nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
        else:
            layers.append(nn.MaxPool2d(2) if index in (4, 9, 16, 23) else nn.ReLU())
    layers.load_state_dict({key.removeprefix("features."): value for key, value in vgg.items()})
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((images - shift[:, None, None]) / scale[:, None, None] for images in (images, targets))
    total = torch.zeros(len(x))
    taps = [3, 8, 15, 22, 29]
    for index, layer in enumerate(layers):
        x, y = layer(x), layer(y)
        if index in taps:
            difference = x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)
            weighted = F.conv2d(difference.square(), linear[f"lin{taps.index(index)}.model.1.weight"])
            total = total + weighted.mean(dim=(1, 2, 3))
    return total


@torch.no_grad()
def test_lpips_is_lpips(tmp_path, vgg, linear):
    torch.save({**vgg, **linear}, tmp_path / "both.pth")
    images, targets = pair()
    loss = perceptual_loss(tmp_path / "both.pth")
    expected = reference_lpips(vgg, linear, images, targets)
    assert_close(loss.distances(images, targets), expected, rtol=1e-4, atol=1e-5)
    assert_close(loss(images, targets), expected.mean(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_all_layouts_of_the_files_are_read(tmp_path, vgg, linear):
    """A folder of torchvision's file and of lpips's, and a whole ``lpips.LPIPS``."""
    images, targets = pair((16, 16), batch=1)
    (tmp_path / "two").mkdir()
    torch.save(
        {**vgg, "classifier.0.weight": torch.zeros(1), "classifier.6.bias": torch.zeros(1)}, tmp_path / "two/a.pth"
    )
    torch.save(linear, tmp_path / "two/vgg.pth")
    (tmp_path / "two/notes.txt").write_text("from the web")
    slices = {index: 1 + sum(index > last for last in (3, 8, 15, 22)) for index in INDICES}
    whole = {
        f"net.slice{slices[int(key.split('.')[1])]}.{key.removeprefix('features.')}": value
        for key, value in vgg.items()
    }
    whole |= linear | {key.replace("lin", "lins.", 1): value for key, value in linear.items()}
    whole |= {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    torch.save(whole, tmp_path / "whole.pth")
    expected = reference_lpips(vgg, linear, images, targets)
    for source in ("two", "whole.pth"):
        assert_close(lpips_vgg16(tmp_path / source).distances(images, targets), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda vgg, linear: vgg, r"no weights of LPIPS \('lin0\.model\.1\.weight'\)"),
        (lambda vgg, linear: linear, r"no weights of VGG16"),
        (
            lambda vgg, linear: {**vgg, **linear, "features.1.weight": vgg["features.0.bias"]},
            "unknown key 'features.1.w",
        ),
        (lambda vgg, linear: {**vgg, **linear, "features.0.bias": torch.zeros(3)}, "1 of another shape"),
        (lambda vgg, linear: {k: v for k, v in {**vgg, **linear}.items() if "28" not in k}, "2 missing"),
    ],
)
def test_other_weights_are_refused_in_one_line(tmp_path, vgg, linear, change, complaint):
    torch.save(change(vgg, linear), tmp_path / "weights.pth")
    with one_line_error(CheckpointError, match=complaint) as caught:
        perceptual_loss(str(tmp_path / "weights.pth"))
    assert str(tmp_path) in str(caught.value)


def test_a_tensor_in_two_files_is_refused(tmp_path, linear):
    for name in ("one.pth", "two.pth"):
        torch.save(linear, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"more than one file holds the tensor for 'lin\.0'; leave one"):
        lpips_vgg16(tmp_path)


def test_a_path_that_leads_nowhere_is_refused():
    with pytest.raises(CheckpointError, match=r"lite1: no such file or folder; give 'lite0', 'lpips', or where"):
        perceptual_loss("lite1")


@torch.no_grad()
def test_the_default_is_the_mean_of_twice_one_minus_the_cosine(lite0):
    images, targets = pair((64, 64))
    maps = zip(lite0.network.features(images), lite0.network.features(targets), strict=True)
    cosines = torch.stack([F.cosine_similarity(x, y, dim=1).mean(dim=(1, 2)) for x, y in maps])
    assert_close(lite0.distances(images, targets), (2 - 2 * cosines).mean(dim=0))


@torch.no_grad()
def test_small_images_are_magnified_by_a_whole_factor(lite0):
    images, targets = pair((24, 30))
    magnified = [F.interpolate(x, scale_factor=3, mode="bilinear") for x in (images, targets)]
    assert_close(lite0.distances(images, targets), lite0.distances(*magnified), rtol=1e-6, atol=0)
    unmagnified = PerceptualLoss(lite0.network, list(lite0.weights))
    assert (lite0(images, targets) - unmagnified(images, targets)).abs() > 1e-3


@torch.no_grad()
def test_the_more_is_lost_the_greater_the_distance(lite0):
    images = F.interpolate(pair((8, 8), batch=1)[0], scale_factor=8, mode="nearest")
    blurred = [F.interpolate(F.avg_pool2d(images, n), scale_factor=n, mode="bilinear") for n in (1, 2, 4, 8)]
    distances = [float(lite0(image, images)) for image in blurred]
    assert distances[0] < 1e-6
    assert distances == sorted(distances)
    assert distances[-1] < 4


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_reach_the_images_alone(lite0, precision):
    images, targets = (x.requires_grad_() for x in pair())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = lite0(images, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert images.grad.isfinite().all()
    assert images.grad.any()
    assert targets.grad is None
    assert not any(parameter.requires_grad for parameter in lite0.parameters())


def test_black_features_have_finite_gradients(tmp_path, vgg, linear):
    silent = {key: value * 0 - float(key.endswith("bias")) for key, value in vgg.items()}
    torch.save({**silent, **linear}, tmp_path / "both.pth")
    images = torch.zeros(1, 3, 16, 16, requires_grad=True)
    perceptual_loss(tmp_path / "both.pth")(images, torch.ones(1, 3, 16, 16)).backward()
    assert images.grad.isfinite().all()


def test_lpips_under_autocast(tmp_path, vgg, linear):
    torch.save({**vgg, **linear}, tmp_path / "both.pth")
    images, targets = pair((16, 16))
    images.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = lpips_vgg16(tmp_path / "both.pth")(images, targets)
    loss.backward()
    assert images.grad.isfinite().all()
    assert_close(loss.detach(), reference_lpips(vgg, linear, *pair((16, 16))).mean().detach(), rtol=0.05, atol=0)


def test_sizes_that_are_too_small_are_refused(tmp_path, vgg, linear):
    torch.save({**vgg, **linear}, tmp_path / "both.pth")
    with pytest.raises(ConfigError, match=r"at least 16 pixels a side, got 15 x 16"):
        lpips_vgg16(tmp_path / "both.pth")(*pair((15, 16)))
    with pytest.raises(ConfigError, match="smallest_side must be at least 1"):
        PerceptualLoss(efficientnet_lite0(), [], smallest_side=0)
