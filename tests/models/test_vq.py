"""The tokenizer: shapes, quantisation and its gradient, losses, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.errors import CheckpointError, ConfigError
from aimamba.models import VQ_PRESETS, VQConfig, VQModel
from aimamba.models.vq import SpatialAttention
from refusals import one_line_error


def random_images(size, batch=2, dtype=torch.float32, seed=0):
    return 2 * torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def test_the_preset_has_the_published_size():
    with torch.device("meta"):
        model = VQModel(VQ_PRESETS["vq-f16"])
    assert model.num_parameters() == 71_883_403
    assert model.config.downsampling == 16


@pytest.mark.parametrize("downsampling", [1, 2, 4, 8, 16])
@torch.no_grad()
def test_downsampling(make_vq, downsampling):
    levels = downsampling.bit_length()
    model = make_vq(channel_mult=(1,) * levels)
    assert model.config.downsampling == downsampling
    images = random_images((2 * downsampling, 3 * downsampling))
    codes = model.encode(images)
    assert codes.shape == (2, 2, 3)
    assert codes.min() >= 0
    assert codes.max() < model.config.codebook_size
    assert model.decode(codes).shape == images.shape
    output = model(images)
    assert output.images.shape == images.shape
    assert torch.equal(output.codes, codes)


@torch.no_grad()
def test_patches_are_read_and_decoded_whole(make_vq):
    model = make_vq(patch_size=4, channel_mult=(1, 2))
    assert model.config.downsampling == 8
    images = random_images((16, 24))
    seen = []
    model.encoder.stem.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    codes = model.encode(images)
    assert codes.shape == (2, 2, 3)
    [(patches, hidden)] = seen
    assert (patches.shape, hidden.shape) == ((2, 48, 4, 6), (2, 8, 4, 6)), "no convolution at full resolution"
    assert torch.equal(patches[:, :, 1, 2].view(2, 3, 4, 4), images[:, :, 4:8, 8:12])
    decoded = model.decode(codes)
    assert decoded.shape == images.shape
    assert decoded[0, 0, :4, :4].unique().numel() == 16, "every pixel of a patch has its own value"


@torch.no_grad()
def test_decode_of_codes_is_the_reconstruction(make_vq):
    model = make_vq(dtype=torch.float64)
    images = random_images((8, 8), dtype=torch.float64)
    assert_close(model.decode(model.encode(images)), model(images).images, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_quantize_takes_the_nearest_code(make_vq):
    model = make_vq(dtype=torch.float64)
    latents = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vectors, codes, _ = model.quantize(latents)
    unit = F.normalize(latents, dim=1).movedim(1, -1)
    distances = (unit[..., None, :] - F.normalize(model.codebook, dim=-1)).square().sum(dim=-1)
    assert torch.equal(codes, distances.argmin(dim=-1))
    assert_close(vectors.movedim(1, -1), F.normalize(model.codebook, dim=-1)[codes], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_length_of_codes_does_not_matter(make_vq):
    model = make_vq(dtype=torch.float64)
    images = random_images((8, 8), dtype=torch.float64)
    before = model(images)
    model.codebook.mul_(torch.linspace(0.5, 9, 24, dtype=torch.float64)[:, None])
    after = model(images)
    assert torch.equal(before.codes, after.codes)
    assert_close(before.images, after.images, rtol=1e-10, atol=1e-10)


def test_gradient_goes_straight_through(make_vq):
    """The gradient at the normalised latent is the gradient at the code, as if nothing had been rounded."""
    model = make_vq(dtype=torch.float64)
    latents = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    vectors, _, _ = model.quantize(latents)
    (got,) = torch.autograd.grad((vectors * weights).sum(), latents)
    (expected,) = torch.autograd.grad((F.normalize(latents, dim=1) * weights).sum(), latents)
    assert_close(got, expected)
    (codebook,) = torch.autograd.grad((model.quantize(latents)[0] * weights).sum(), model.codebook, allow_unused=True)
    assert codebook is None or not codebook.any(), "the image does not pull at the codes"


def test_losses(make_vq):
    model = make_vq(dtype=torch.float64, commitment_weight=0.75)
    images = random_images((8, 8), dtype=torch.float64)
    output = model(images)
    unit = F.normalize(model.latents(images), dim=1)
    codes = F.normalize(model.codebook, dim=-1)[output.codes].movedim(-1, 1)
    distance = (unit - codes).square().mean()
    assert_close(output.codebook_loss, distance)
    assert_close(output.commitment_loss, 0.75 * distance)

    output.codebook_loss.backward(retain_graph=True)
    assert model.codebook.grad.any()
    assert model.to_code.weight.grad is None or not model.to_code.weight.grad.any()
    model.zero_grad(set_to_none=True)
    output.commitment_loss.backward()
    assert model.to_code.weight.grad.any()
    assert model.codebook.grad is None or not model.codebook.grad.any()


def test_every_parameter_is_trained(make_vq):
    model = make_vq()
    output = model(random_images((8, 8)))
    (output.images.square().mean() + output.codebook_loss + output.commitment_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_codes_do_not_depend_on_autocast_or_narrow_latents(make_vq):
    model = make_vq(codebook_size=4096)
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = model.quantize(latents)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.quantize(latents)[1], expected)
    narrow = latents.bfloat16()
    vectors, codes, losses = model.quantize(narrow)
    assert torch.equal(codes, model.quantize(narrow.float())[1])
    assert vectors.dtype == torch.bfloat16
    assert losses.dtype == torch.float32


def test_training_under_autocast(make_vq):
    model = make_vq()
    images = random_images((8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images)
    (output.images.float().square().mean() + output.codebook_loss + output.commitment_loss).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_bfloat16_weights(make_vq):
    model = make_vq()
    codes = torch.randint(24, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    expected = model.decode(codes)
    images = model.cast(torch.bfloat16).decode(codes)
    assert images.dtype == torch.bfloat16
    assert (images - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_codes_do_not_depend_on_the_dtype(make_vq, dtype):
    model = make_vq(channels=32)
    images = random_images((64, 64))
    codes, before, fingerprint = model.encode(images), model.decode(model.encode(images)), model.code_fingerprint()
    model.cast(dtype)
    assert (model.dtype, model.from_code.weight.dtype) == (dtype, dtype)
    assert torch.equal(model.encode(images), codes)
    assert model.code_fingerprint() == fingerprint
    output = model(images)
    assert torch.equal(output.codes, codes)
    assert (output.images.dtype, output.vectors.dtype) == (dtype, torch.float32)
    assert_close(output.images.float(), before, rtol=0, atol=0.05 * float(before.abs().max()))
    model.to(dtype)  # torch's own cast narrows everything, and then codes move
    assert not torch.equal(model.encode(images), codes)
    assert model.code_fingerprint() != fingerprint


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (1, 1)])
def test_sides_that_do_not_fit_are_refused(make_vq, size):
    with pytest.raises(ConfigError, match=f"multiples of 2, got {size[0]} x {size[1]}"):
        make_vq().encode(random_images(size))


@torch.no_grad()
def test_attention_can_be_left_out(make_vq):
    def count(model):
        return sum(isinstance(module, SpatialAttention) for module in model.modules())

    without, with_attention = make_vq(attention=False), make_vq(attention=True)
    assert count(without) == 0
    assert count(with_attention) == 1 + 1 + 1 + 2, "middle twice, one encoder block, two decoder blocks"
    assert without(random_images((4, 4))).images.shape == (2, 3, 4, 4)


@torch.no_grad()
def test_initial_weights_come_from_the_generator_alone(make_vq):
    first, second = make_vq(seed=3), make_vq(seed=3)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name
    assert not torch.equal(first.codebook, make_vq(seed=4).codebook)
    assert_close(first.codebook.norm(dim=-1), torch.ones(24))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"channels": 0}, "channels"),
        ({"patch_size": 0}, "patch_size"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"z_channels": 0}, "z_channels"),
        ({"codebook_size": 0}, "codebook_size"),
        ({"codebook_dim": 0}, "codebook_dim"),
        ({"norm_groups": 0}, "norm_groups"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0)}, "channel_mult"),
        ({"channels": 100}, "norm_groups 32 must divide"),
        ({"channels": 16, "channel_mult": (2, 4)}, "norm_groups 32 must divide"),
    ],
)
def test_impossible_shapes_are_refused(settings, named):
    with one_line_error(ConfigError, match=named):
        VQConfig(**settings)


@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["encoder.stem.weight", "to_code.bias", "codebook"])
def test_a_damaged_encoder_is_refused(make_vq, name, damage):
    """It would encode every image as one code."""
    model = make_vq()
    with torch.no_grad():
        model.get_parameter(name)[0] = damage
    with pytest.raises(CheckpointError, match="latents contain NaN or infinity: its weights are damaged"):
        model.encode(torch.rand(2, 3, 8, 8) * 2 - 1)


def test_an_encoder_that_overflows_is_refused(make_vq):
    model = make_vq()
    with torch.no_grad():
        model.encoder.head.weight.mul_(1e6)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    model.encode(images)
    with pytest.raises(CheckpointError, match="dtype is too narrow"):
        model.to(torch.float16).encode(images)
