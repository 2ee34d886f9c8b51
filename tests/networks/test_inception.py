"""Inception: its resizing, its shapes, and torch-fidelity's network with the same weights, if it is installed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from aimamba.errors import CheckpointError
from aimamba.networks.inception import CLASSES, POOLED, SPATIAL, Inception, load_inception, tensorflow1_bilinear


@pytest.fixture(scope="module")
def tensors():
    """A state dict of moderate values: no activation vanishes or explodes."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in Inception().state_dict().items()}
    found = {}
    for key, shape in shapes.items():
        scale = 1.5 / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.2
        found[key] = scale * torch.randn(shape, generator=generator) + (key.endswith(("bn.weight", "running_var")))
        if key.endswith("running_var"):
            found[key].abs_()
        if key.endswith("running_var"):
            found[key.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return found


@pytest.fixture(scope="module")
def path(tensors, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(tensors, file)
    return file


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 40), dtype=np.uint8))


def test_its_names_are_torch_fidelitys():
    with torch.device("meta"):
        keys = Inception().state_dict().keys()
    assert len(keys) == 94 * 5 + 2
    assert {
        *("Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch5x5_2.bn.running_mean", "Mixed_6a.branch3x3.conv.weight"),
        *("Mixed_6e.branch7x7dbl_5.conv.weight", "Mixed_7a.branch7x7x3_4.bn.bias", "Mixed_7c.branch_pool.bn.weight"),
        *("Mixed_7b.branch3x3_2a.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var", "fc.weight", "fc.bias"),
    } <= keys


@torch.no_grad()
def test_shapes_and_precision(path, images):
    network = load_inception(path)
    found = network(images)
    assert (found.pooled.shape, found.spatial.shape) == ((2, POOLED), (2, SPATIAL))
    assert found.logits.shape == (2, CLASSES)
    assert_close(found.logits, nn.functional.linear(found.pooled, network.fc.weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(network(images).pooled, found.pooled, rtol=0, atol=0)


def test_tensorflows_resizing():
    rng = np.random.default_rng(0)
    for height, width in ((2, 3), (40, 33), (400, 299)):
        image = rng.random((height, width)).astype(np.float32)
        found = tensorflow1_bilinear(torch.from_numpy(image)[None, None], 299)[0, 0].numpy()
        for i, j in ((0, 0), (298, 298), (7, 150), (150, 7), (211, 298)):
            y, x = np.float32(i) * np.float32(height / 299), np.float32(j) * np.float32(width / 299)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            above = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            assert found[i, j] == pytest.approx(above + (below - above) * (y - top), abs=1e-6)


@torch.no_grad()
def test_it_is_torch_fidelitys(path, tensors, images):
    """The package's network, with our weights."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    names = ["768", "2048", "logits_unbiased"]
    official = module.FeatureExtractorInceptionV3("x", names, feature_extractor_weights_path=str(path))
    maps = []
    official.Mixed_6d.register_forward_hook(lambda *call: maps.append(call[-1]))
    _, pooled, logits = official(images)
    found = load_inception(path)(images)
    assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)
    assert_close(found.spatial, maps[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1), rtol=1e-5, atol=1e-5)


def test_other_files_are_refused(tmp_path, tensors):
    torch.save({key: value for key, value in tensors.items() if "Mixed_7c" not in key}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"part\.pth: weights do not fit the model: .* missing \(Mixed_7c"):
        load_inception(tmp_path / "part.pth")
