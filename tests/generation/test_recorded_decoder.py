"""The decoder by recordings: the images of the plain one, and no wait for a device but the check at the end."""

import pytest
import torch
from torch.testing import assert_close

from aimamba import CheckpointError
from aimamba.generation.fast_decoder import FastDecoder, check_finite
from aimamba.generation.fast_decoder import decoder as fast_decoder
from decoding import Recorder
from waiting import counted_waits

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def model(make_vq):
    return make_vq(dtype=torch.float64)


@pytest.fixture
def decoder(model, recorder, monkeypatch):
    monkeypatch.setattr(fast_decoder, "_BATCH_ON_CPU", 2)
    return FastDecoder(model, record=recorder)


def some_codes(model, batch, height=3, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.codebook_size, (batch, height, width), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize(("batch", "recorded", "replayed"), [(1, 0, 0), (2, 1, 1), (4, 1, 2), (5, 1, 2)])
def test_full_slices_are_replayed_and_the_rest_is_not(model, decoder, recorder, batch, recorded, replayed):
    codes = some_codes(model, batch)
    assert_close(decoder(codes), model.decode(codes), **EXACT)
    assert (recorder.recorded, recorder.replayed) == (recorded, replayed)


@torch.no_grad()
def test_one_recording_serves_all_calls_and_images_are_the_callers(model, decoder, recorder):
    codes = [some_codes(model, 2, seed=seed) for seed in range(3)]
    images = [decoder(each) for each in codes]
    for image, each in zip(images, codes, strict=True):
        assert_close(image, model.decode(each), **EXACT)
    assert recorder.recorded == 1
    other = some_codes(model, 4, 2, 2)
    assert_close(decoder(other), model.decode(other), **EXACT)
    assert recorder.recorded == 2, "another grid of codes"


@torch.no_grad()
def test_recordings_made_in_inference_mode_serve_outside_of_it(model, decoder):
    codes = some_codes(model, 2)
    with torch.inference_mode():
        first = decoder(codes)
    assert_close(decoder(codes), first, **EXACT)


def test_images_are_queued_without_a_wait(model, decoder):
    codes = some_codes(model, 5)
    with counted_waits() as waits:
        decoded = decoder.queue(codes)
    assert waits == []
    with counted_waits() as waits:
        check_finite(decoded.finite)
    assert len(waits) == 1


@torch.no_grad()
def test_damaged_weights_are_refused(model, recorder):
    model.decoder.stem.weight[0, 0, 1, 1] = torch.nan
    decoder = FastDecoder(model, record=recorder)
    decoded = decoder.queue(some_codes(model, 3))
    with pytest.raises(CheckpointError, match="images contain NaN or infinity: its weights are damaged"):
        check_finite(decoded.finite)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_cuda_graph_decodes_as_pytorch_does(make_vq, dtype):
    model = make_vq(channels=32, z_channels=16).cuda()
    codes = some_codes(model, 19).cuda()
    expected = model.decode(codes)
    decoder = FastDecoder(model.to(dtype))
    decoder(codes)  # records
    with counted_waits("cuda") as waits:
        decoded = decoder.queue(codes)
    assert waits == []
    bound = 0.02 if dtype == torch.float32 else 0.1  # convolutions in TF32; in bfloat16
    assert (decoded.images.float() - expected).abs().max() < bound * expected.abs().max()
    assert torch.equal(decoder(codes), decoded.images), "the same in every call"
