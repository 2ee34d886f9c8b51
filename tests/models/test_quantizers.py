"""Quantisers: each against a plain reference, its gradient, codes to vectors and back, and what is refused."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.checkpoints.fingerprint import fingerprint
from aimamba.checkpoints.sums import SUMS_KEY
from aimamba.errors import CheckpointError, ConfigError
from aimamba.generation.fast_decoder.decoder import FastDecoder
from aimamba.models import AiMConfig, VQConfig, VQModel
from aimamba.models.bounds import count_tokenizer
from aimamba.models.quantizers import Relaxation
from aimamba.ops.quantize import nearest_code, relaxed_one_hot, sign_entropies
from aimamba.train.rear import VectorHeads
from quantizer_settings import KINDS, SETTINGS
from refusals import one_line_error
from waiting import counted_waits


@pytest.fixture
def make(make_vq):
    return lambda kind, **settings: make_vq(**SETTINGS[kind], **settings)


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images(seed=0, dtype=torch.float32):
    return 2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def latents_of(model, seed=1):
    """Latents (2, C, 3, 5) and the same with channels last."""
    first = normal(2, model.quantizer.channels, 3, 5, seed=seed).requires_grad_()
    return first, first.detach().movedim(1, -1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_whole_tokenizer(make, kind):
    model = make(kind, dtype=torch.float64)
    codes = model.encode(images(dtype=torch.float64))
    assert codes.shape == (2, 4, 4)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < model.config.codebook_size
    assert len(codes.unique()) > 1
    output = model(images(dtype=torch.float64))
    assert torch.equal(output.codes, codes)
    assert_close(model.decode(codes), output.images, rtol=1e-12, atol=1e-12)
    assert_close(FastDecoder(model, native=False)(codes), output.images, rtol=1e-9, atol=1e-9)
    assert model.num_parameters() == count_tokenizer(model.config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_waits_for_no_device(make, kind):
    model, given = make(kind).train(), images()
    model(given).images.square().mean().backward()
    with counted_waits() as waits:
        output = model(given)
        (output.images.square().mean() + output.codebook_loss + output.commitment_loss).backward()
    assert waits == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("gumbel",)])
@torch.no_grad()
def test_vectors_are_quantized_to_their_own_codes(make, kind):
    """The vectors of all codes are different, and each is its own code, whatever the quantiser is."""
    model = make(kind, dtype=torch.float64)
    vectors = model.all_vectors()
    size, width = model.config.codebook_size, model.config.codebook_dim
    assert vectors.shape == (size, width)
    assert len(vectors.unique(dim=0)) == size
    latents = vectors.clone()
    if kind == "fsq":  # latents that tanh brings back to the levels
        latents = torch.atanh((vectors * torch.tensor([2, 1, 2]) + torch.tensor([0.5, 0, 0])) / _half()) - _shift()
    found, codes, _ = model.quantize(latents.t()[None, :, None])
    assert codes.flatten().tolist() == list(range(size))
    assert_close(found[0, :, 0].t(), vectors, rtol=1e-12, atol=1e-12)


def _half():
    return torch.tensor([3, 2, 4], dtype=torch.float64) * 1.001 / 2


def _shift():
    return torch.atanh(torch.tensor([0.5, 0, 0], dtype=torch.float64) / _half())


@torch.no_grad()
def test_ema_takes_the_nearest_vector(make):
    model = make("ema", dtype=torch.float64)
    model.codebook.mul_(torch.linspace(0.2, 3, 24, dtype=torch.float64)[:, None])  # here lengths do matter
    latents, rows = latents_of(model)
    vectors, codes, losses = model.quantize(latents)
    distances = (rows[..., None, :] - model.codebook).square().sum(dim=-1)
    assert torch.equal(codes, distances.argmin(dim=-1))
    assert_close(vectors.movedim(1, -1), model.codebook[codes])
    assert_close(losses, torch.tensor([0.0, distances.amin(dim=-1).mean() / 4], dtype=torch.float64))
    assert torch.equal(nearest_code(rows.flatten(0, 2), model.codebook, unit=False, scores_at_once=50), codes.flatten())


@torch.no_grad()
def test_fsq_rounds_each_channel_to_its_levels(make):
    model = make("fsq", dtype=torch.float64)
    latents = 3 * normal(1, 3, 30, 30)
    vectors, codes, losses = model.quantize(latents)
    scale = torch.tensor([2, 1, 2], dtype=torch.float64)
    integers = (vectors.movedim(1, -1) * scale).round()
    for channel, expected in enumerate(([-2, -1, 0, 1], [-1, 0, 1], [-2, -1, 0, 1, 2])):
        assert integers[..., channel].unique().tolist() == expected
    squashed = torch.tanh(latents.movedim(1, -1) + _shift()) * _half() - torch.tensor([0.5, 0, 0])
    assert torch.equal(integers, squashed.round() + 0.0)
    digits = integers + torch.tensor([2, 1, 2])
    assert torch.equal(codes, (digits[..., 0] + 4 * digits[..., 1] + 12 * digits[..., 2]).long())
    assert len(codes.unique()) > 50
    assert not losses.any()
    assert not model.quantize(torch.zeros_like(latents))[0].any(), "a latent of 0 stays there"


@torch.no_grad()
def test_lfq_takes_the_signs(make):
    model = make("lfq", dtype=torch.float64)
    latents, rows = latents_of(model)
    vectors, codes, losses = model.quantize(latents)
    assert torch.equal(vectors, latents.sign())
    assert torch.equal(codes, ((rows > 0) * torch.tensor([1, 2, 4, 8])).sum(dim=-1))
    assert_close(losses[1], (latents - latents.sign()).square().mean())


@pytest.mark.parametrize("width", [1, 4, 5])
def test_entropies_of_lfq_are_those_of_all_codes(width):
    latents = normal(7, width).requires_grad_()
    codes = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=width)), dtype=torch.float64)
    found = sign_entropies(latents, 0.7)
    each = (-(latents[:, None] - codes).square().sum(dim=-1) / 0.7).softmax(dim=-1)
    mean = each.mean(dim=0)
    expected = -(each * each.log()).sum(dim=-1).mean(), -(mean * mean.log()).sum()
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
        gradients = [torch.autograd.grad(value, latents, retain_graph=True)[0] for value in (one, other)]
        assert_close(*gradients)


def test_entropies_of_very_sure_latents_are_finite():
    latents = torch.full((3, 6), 1e4).requires_grad_()
    each, mean = sign_entropies(latents, 0.01)
    (each - mean).backward()
    assert (float(each.detach()), float(mean.detach())) == (0.0, 0.0)
    assert latents.grad.isfinite().all()


def test_gumbel(make):
    model = make("gumbel", dtype=torch.float64)
    latents, rows = latents_of(model)
    vectors, codes, _ = model.quantize(latents)
    assert torch.equal(codes, rows.argmax(dim=-1))
    assert torch.equal(vectors.detach().movedim(1, -1), model.codebook[codes])
    uniform = torch.rand(2, 3, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    noisy = rows - (-uniform.log()).log()
    mixed, same, _ = model.quantize(latents, Relaxation(uniform, 0.5))
    assert_close(mixed.movedim(1, -1), (noisy / 0.5).softmax(dim=-1) @ model.codebook)
    assert torch.equal(same, codes), "codes are those without noise"
    cold = model.quantize(latents, Relaxation(uniform, 1e-6))[0]
    assert_close(cold.movedim(1, -1), model.codebook[noisy.argmax(dim=-1)])
    kl = model.penalties(latents, 1.0)["kl"]
    shares = rows.softmax(dim=-1)
    assert_close(kl, (shares * (shares * 24).log()).sum(dim=-1).mean())
    assert abs(float(model.penalties(torch.zeros_like(latents), 1.0)["kl"])) < 1e-12


def test_samples_of_gumbel_have_the_probabilities_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20000, 3)
    uniform = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0))
    uniform[0] = 0  # which torch.rand may return
    found = relaxed_one_hot(logits, uniform, 0.1)
    assert found.isfinite().all()
    assert_close(found.argmax(dim=-1).bincount() / 20000, logits[0].softmax(dim=-1), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_straight_through(make, kind):
    model = make(kind, dtype=torch.float64)
    latents, _ = latents_of(model)
    weights = normal(2, model.config.codebook_dim, 3, 5, seed=2)
    (found,) = torch.autograd.grad((model.quantize(latents)[0] * weights).sum(), latents)

    def unrounded(x):
        if kind == "learned":
            return F.normalize(x, dim=1)
        if kind == "fsq":
            last = x.movedim(1, -1)
            squashed = torch.tanh(last + _shift()) * _half() / torch.tensor([2, 1, 2])
            return squashed.movedim(-1, 1)
        if kind == "gumbel":
            return (x.movedim(1, -1).softmax(dim=-1) @ model.codebook.detach()).movedim(-1, 1)
        return x

    (expected,) = torch.autograd.grad((unrounded(latents) * weights).sum(), latents)
    assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(make, kind):
    model = make(kind)
    output = model(images())
    penalties = model.penalties(model.latents(images()), 1.0)
    (output.images.square().mean() + output.codebook_loss + output.commitment_loss + sum(penalties.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert ("codebook" in dict(model.named_parameters())) == (kind in ("learned", "gumbel"))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_codes_do_not_depend_on_autocast_or_narrow_latents(make, kind):
    model = make(kind)
    latents = normal(4, model.quantizer.channels, 8, 8, dtype=torch.float32)
    expected = model.quantize(latents)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.quantize(latents)[1], expected)
    vectors, codes, losses = model.quantize(latents.bfloat16())
    assert torch.equal(codes, model.quantize(latents.bfloat16().float())[1])
    assert (vectors.dtype, losses.dtype) == (torch.bfloat16, torch.float32)
    narrow = model.cast(torch.bfloat16)
    assert narrow.decode(narrow.encode(images().bfloat16())).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_saving(make, kind, tmp_path):
    model = make(kind)
    model.save_pretrained(tmp_path)
    assert ("codebook" in load_file(tmp_path / "model.safetensors")) == (kind not in ("fsq", "lfq"))
    loaded = VQModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.encode(images()), model.encode(images()))
    assert torch.equal(loaded(images()).images, model(images()).images)
    assert loaded.code_fingerprint() == model.code_fingerprint()
    assert VQModel.from_pretrained(tmp_path, dtype="bfloat16").code_fingerprint() == model.code_fingerprint()


def test_folders_of_earlier_versions(make, tmp_path):
    """They know nothing of quantisers; config, bits and fingerprints are as they were."""
    model = make("learned")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("quantizer") == "learned"
    assert not {"levels", "decoder_channels"} & config.keys()
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = VQModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    earlier = {name: value for name, value in config.items() if name not in ("class", SUMS_KEY)}
    assert loaded.fingerprint() == fingerprint(earlier, model.state_dict())


def test_fingerprints_tell_quantizers_apart(make):
    models = [make(kind) for kind in KINDS]
    assert len({model.code_fingerprint() for model in models}) == len(KINDS)


def test_a_change_of_an_averaged_codebook_is_noticed(make):
    model = make("ema")
    decoder = FastDecoder(model, native=False)
    before = model.code_fingerprint()
    with torch.no_grad():
        model.codebook.add_(1.0)
    assert not decoder.matches(model)
    assert model.code_fingerprint() != before


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_are_refused(make, kind):
    for name in ("to_code.bias", "codebook"):
        model = make(kind)
        if name in model.state_dict():
            with torch.no_grad():
                model.state_dict()[name][:] = torch.nan
            with pytest.raises(CheckpointError, match="latents contain NaN or infinity"):
                model.encode(images())


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_rear_learn_the_vectors_of_any_quantizer(make, kind):
    model = make(kind)
    size = model.config.codebook_size
    config = AiMConfig(width=32, num_blocks=2, vocab_size=size, num_tokens=16, num_classes=3, head_width=16)
    heads = VectorHeads.of(config, model, recover_after=1, predict_after=0)
    heads.init_weights(torch.Generator().manual_seed(0))
    assert torch.equal(heads.vectors, model.all_vectors())
    states = {after: normal(2, 16, 32, dtype=torch.float32) for after in heads.empty_states()}
    losses = heads.losses(states, torch.arange(32).view(2, 16) % size)
    assert all(0 < float(loss.detach()) < 2 for loss in losses.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_may_be_wider_than_the_encoder(make, kind):
    narrow, wide = make(kind), make(kind, decoder_channels=16)
    assert wide.num_parameters() == count_tokenizer(wide.config) > narrow.num_parameters()
    assert sum(p.numel() for p in wide.encoder.parameters()) == sum(p.numel() for p in narrow.encoder.parameters())
    assert wide(images()).images.shape == (2, 3, 8, 8)
    assert_close(FastDecoder(wide, native=False)(wide.encode(images())), wide(images()).images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": "fsq", "codebook_size": 8}, "needs levels"),
        ({"levels": (8, 5)}, "levels are of the quantizer 'fsq', not 'learned'"),
        ({"quantizer": "fsq", "levels": (8, 5), "codebook_size": 40}, "set codebook_dim to 2"),
        ({"quantizer": "fsq", "levels": (8, 5), "codebook_dim": 2}, "make 40 codes, but codebook_size is 16,384"),
        ({"quantizer": "fsq", "levels": (4, 2), "codebook_dim": 2, "codebook_size": 8}, "between 3 and 1024"),
        ({"quantizer": "fsq", "levels": (), "codebook_dim": 1}, "got 0"),
        ({"quantizer": "fsq", "levels": (1 << 40,), "codebook_dim": 1}, "between 3 and 1024"),
        ({"quantizer": "lfq", "codebook_dim": 10}, "has 2^10 codes, but codebook_size is 16,384"),
        ({"quantizer": "lfq", "codebook_dim": 9999, "codebook_size": 512}, "at most 20"),
        ({"quantizer": "gumbel", "levels": (2, 2)}, "levels are of"),
        ({"decoder_channels": 0}, "decoder_channels must be at least 1"),
        ({"decoder_channels": 1 << 40}, "decoder_channels must be at most"),
        ({"decoder_channels": 100}, "norm_groups 32 must divide"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with one_line_error(ConfigError, match=message.replace("^", r"\^")):
        VQConfig(**settings)


def test_large_codebooks_without_a_table():
    config = VQConfig(quantizer="lfq", codebook_dim=18, codebook_size=1 << 18)
    with torch.device("meta"):
        model = VQModel(config)
    assert "codebook" not in model.state_dict()
    assert math.log2(config.codebook_size) == 18
