"""Metrics of a tokenizer."""

import numpy as np
import pytest
import torch

from aimamba.data.sheets import to_float, to_pil, to_uint8
from aimamba.errors import ConfigError
from aimamba.evaluation.compare import distances
from aimamba.evaluation.measure import measure
from aimamba.evaluation.sources import open_source
from aimamba.evaluation.summary import reconstruction_summary
from aimamba.evaluation.tokenizer import compare_tokenizer, perplexity
from aimamba.generation.fast_decoder.decoder import FastDecoder
from aimamba.models import VQModel
from aimamba.ops.ssim import gaussian_window, ssim, uniform_window


@pytest.fixture
def network(plain):
    class Small(plain):
        """Sees the corner of larger images."""

        def __call__(self, images):
            return super().__call__(images[:, :, :8, :8])

    return Small


def test_every_metric(make_vq, network, tmp_path):
    model = make_vq()
    images = open_source("avatars-16:held-out:3")
    found = compare_tokenizer(model, images, network())
    between, kept = found.distances.to_dict(), found.reconstruction.to_dict()
    real = np.concatenate(list(images.batches(9)))
    x = torch.from_numpy(real).permute(0, 3, 1, 2)
    codes = torch.cat([model.encode(to_float(one)) for one in x.split(3)])
    drawn = np.stack([np.asarray(image) for one in codes.split(3) for image in to_pil(to_uint8(model.decode(one)))])
    np.savez(tmp_path / "drawn.npz", arr_0=drawn)
    expected = distances(measure(open_source(str(tmp_path / "drawn.npz")), network()), measure(images, network()))
    few = {"images": 9, "enough": 2048}
    assert between.pop("few_images") == {"frechet": few, "kid": {"images": 9, "enough": 2000}}
    assert between == pytest.approx(
        {key: value for key, value in expected.to_dict().items() if key in between}, rel=1e-6
    )
    assert {"frechet", "kid", "kid_std"} <= between.keys()
    errors = ((real.astype(float) - drawn) ** 2).mean(axis=(1, 2, 3))
    assert kept["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)))
    y = torch.from_numpy(drawn).permute(0, 3, 1, 2).double()
    standard = ssim(y, x.double(), gaussian_window(), data_range=255.0)
    llamagen = ssim(y / 255, x.double() / 255, uniform_window(), data_range=2.0, unbiased=True)
    assert kept["ssim"] == pytest.approx(float(standard.mean()))
    assert kept["ssim_llamagen"] == pytest.approx(float(llamagen.mean()))
    assert kept["ssim_llamagen"] > kept["ssim"]
    counts = torch.bincount(codes.flatten(), minlength=24)
    assert kept["codes_used"] == pytest.approx(float((counts > 0).double().mean()))
    assert kept["perplexity"] == pytest.approx(perplexity(counts))
    assert "lpips" not in kept
    assert [name for name, _ in reconstruction_summary(found.reconstruction)][:3] == [
        "PSNR",
        "SSIM",
        "SSIM as LlamaGen computes it",
    ]


def test_codes_are_decoded_by_the_fast_decoder(make_vq, network, monkeypatch):
    """Its images are a ten-thousandth of a level off, which flips a rounding in thousands."""
    model = make_vq(channels=32, z_channels=16)
    images = open_source("avatars-16:held-out:3")
    with monkeypatch.context() as patch:
        patch.setattr(FastDecoder, "__call__", lambda self, codes: model.decode(codes))
        expected = compare_tokenizer(model, images, network()).reconstruction
    monkeypatch.delattr(VQModel, "decode")
    kept = compare_tokenizer(model, images, network()).reconstruction
    assert kept.to_dict() == pytest.approx(expected.to_dict(), rel=1e-4)


def test_inceptions_distance_is_called_rfid(make_vq, network):
    found = compare_tokenizer(make_vq(), open_source("avatars-16:held-out:3"), network("inception"))
    assert {"rfid", "rsfid", "kid"} <= found.distances.to_dict().keys()
    assert not {"fid", "sfid"} & found.distances.to_dict().keys()


def test_lpips_where_it_is_given(make_vq, network):
    from aimamba.networks.perceptual import perceptual_loss

    loss = perceptual_loss("lite0", smallest_side=16)
    found = compare_tokenizer(make_vq(), open_source("avatars-16:held-out:3"), network(), lpips=loss)
    assert 0 < found.reconstruction.lpips < 2


def test_perplexity():
    assert perplexity(torch.tensor([3, 3, 0, 3, 3])) == pytest.approx(4)
    assert perplexity(torch.tensor([9, 0])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("size", "message"), [(8, "SSIM needs images of at least 11 pixels, got 8"), (13, "multiple of 2, .* got 13")]
)
def test_sizes_that_do_not_fit(make_vq, network, tmp_path, size, message):
    np.savez(tmp_path / "s.npz", arr_0=np.zeros((3, size, size, 3), np.uint8))
    with pytest.raises(ConfigError, match=message):
        compare_tokenizer(make_vq(), open_source(str(tmp_path / "s.npz")), network())
