"""The fast decoder returns the images of the plain one, natively and by PyTorch."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from aimamba import CheckpointError
from aimamba.data import Avatars
from aimamba.data.sheets import to_float
from aimamba.generation.fast_decoder import decoder as fast_decoder
from aimamba.generation.fast_decoder import native as native_decoder
from aimamba.generation.fast_decoder.decoder import FastDecoder
from aimamba.generation.fast_decoder.folded import FoldedUpsample
from aimamba.models import VQ_PRESETS, VQModel
from aimamba.models.vq import Upsample
from aimamba.ops.conv.native.winograd import load_kernel
from aimamba.ops.norm import group

NATIVE = {"channels": 32, "z_channels": 16, "num_res_blocks": 2}
SHAPES = [
    {},
    {"channel_mult": (1, 2, 1), "attention": False},
    {"channel_mult": (1,), "patch_size": 4},
    {"channel_mult": (2, 1, 3), "patch_size": 2},
]


def some_codes(model, batch=2, height=3, width=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.codebook_size, (batch, height, width), generator=generator)


def levels(got, expected):
    """Mean and largest error in steps of 8-bit pixels."""
    error = 127.5 * (got.double() - expected.double()).abs()
    return float(error.mean()), float(error.max())


def require_kernel():
    if load_kernel() is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """The packaged tokenizer and the codes of real images."""
    model = VQModel.from_pretrained("avatars-64")
    avatars = Avatars(64, "held-out", 1, cache_dir=tmp_path_factory.mktemp("avatars"))
    images = torch.stack([torch.from_numpy(avatars.image(i)) for i in range(0, len(avatars), 2)])
    return model, model.encode(to_float(images.permute(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def published():
    """The published size with random weights, and codes of 64 pixels."""
    model = VQModel(VQ_PRESETS["vq-f16"]).eval()
    model.init_weights(torch.Generator().manual_seed(0))
    return model, some_codes(model, 1, 4, 4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most_weights", [0, native_decoder._MOST_WEIGHTS])
@torch.no_grad()
def test_native(make_vq, monkeypatch, shape, most_weights):
    require_kernel()
    monkeypatch.setattr(native_decoder, "_MOST_WEIGHTS", most_weights)
    model = make_vq(**NATIVE | shape)
    for parameter in model.decoder.parameters():  # norms that do something
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    decoder = FastDecoder(model)
    assert decoder.is_native
    codes = some_codes(model)
    assert_close(decoder(codes), model.decode(codes), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_by_pytorch(make_vq, shape):
    model = make_vq(**shape, dtype=torch.float64)
    decoder = FastDecoder(model)
    assert not decoder.is_native, "float64 stays float64"
    codes = some_codes(model)
    assert_close(decoder(codes), model.decode(codes), rtol=0, atol=1e-12)


@torch.no_grad()
def test_widths_that_the_kernel_does_not_take(make_vq):
    for model in (make_vq(), make_vq(**NATIVE | {"z_channels": 8})):
        decoder = FastDecoder(model)
        assert not decoder.is_native
        assert_close(decoder(some_codes(model)), model.decode(some_codes(model)), rtol=0, atol=2e-5)


def test_why_the_kernel_does_not_support_a_decoder(make_vq, monkeypatch):
    supported = make_vq(**NATIVE).decoder
    for settings, reason in (
        ({"dtype": torch.float64}, "the model is in float64"),
        ({"z_channels": 8}, "number of channels must be a multiple of 16, got 8"),
        ({"channels": 40, "norm_groups": 8}, "multiple of 32"),
    ):
        assert reason in native_decoder.unsupported(make_vq(**NATIVE | settings).decoder)
    monkeypatch.setattr(native_decoder, "load_kernel", lambda: None)
    assert "no C++ compiler built it" in native_decoder.unsupported(supported)


@torch.no_grad()
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_damaged_weights_are_refused(make_vq, damage):
    model = make_vq(**NATIVE)
    model.decoder.stem.weight[0, 0, 1, 1] = damage
    with pytest.raises(CheckpointError, match="images contain NaN or infinity: its weights are damaged"):
        FastDecoder(model)(some_codes(model))


@torch.no_grad()
def test_without_the_kernel(make_vq, monkeypatch):
    monkeypatch.setattr(native_decoder, "load_kernel", lambda: None)
    model = make_vq(**NATIVE)
    decoder = FastDecoder(model)
    assert not decoder.is_native
    assert_close(decoder(some_codes(model)), model.decode(some_codes(model)), rtol=0, atol=2e-5)


@torch.no_grad()
def test_folded_upsample():
    plain = Upsample(6).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(FoldedUpsample(plain)(x), plain(x), rtol=0, atol=1e-12)


class Layouts(TorchDispatchMode):
    """Notes copies to another layout, and operators whose output is not channels last."""

    def __init__(self):
        super().__init__()
        self.copies, self.others = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        if name == "clone":
            self.copies.append(tuple(result.shape))
        image = isinstance(result, torch.Tensor) and result.ndim == 4 and name not in ("permute", "_unsafe_view")
        if image and not result.is_contiguous(memory_format=torch.channels_last):
            self.others.append(name)
        return result


@torch.no_grad()
@pytest.mark.parametrize("by_kernels", [True, False])
def test_everything_stays_channels_last(make_vq, monkeypatch, by_kernels):
    """Without a device with a stand-in for CUDA, whose own group norm loses the layout."""
    pytest.importorskip("triton", reason="Triton is not installed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_vq(channel_mult=(1, 2, 2)).to(device)
    codes, plain = some_codes(model, height=4).to(device), F.group_norm
    expected = model.decode(codes)
    monkeypatch.setattr(F, "group_norm", lambda *given: plain(*given).contiguous())
    monkeypatch.setattr(group, "unsupported", group._unfit if by_kernels else lambda *_: "they shall not be used")
    fast = FastDecoder(model, native=False)
    latents = F.embedding(codes, fast._table).movedim(-1, 1)
    with Layouts() as layouts:
        images = fast._decoder(latents)
    assert_close(images, expected, rtol=0, atol=2e-5 if device == "cpu" else 0.02)  # TF32
    if by_kernels:
        assert layouts.others == []
        assert layouts.copies == [(2, 4, 2, 5, 2, 16), (2, 8, 2, 10, 2, 16)], "one for each upsampling"
    else:
        assert layouts.others, "the test sees another layout"


@pytest.mark.parametrize("native", [True, False])
@torch.no_grad()
def test_error_in_float32(packaged, published, native):
    for model, codes in (packaged, published):
        assert_close(FastDecoder(model, native=native)(codes), model.decode(codes), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("native", "mean", "most"), [(True, 0.4, 5), (False, 0.6, 8)])
@torch.no_grad()
def test_error_with_bfloat16_weights(packaged, native, mean, most):
    """In 8-bit steps, for real codes: rounded weights, and by PyTorch rounded sums too."""
    model, codes = packaged
    expected = model.decode(codes)
    narrow = VQModel.from_pretrained("avatars-64", dtype=torch.bfloat16)
    got_mean, got_most = levels(FastDecoder(narrow, native=native)(codes), expected)
    assert got_mean < mean
    assert got_most < most


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(packaged):
    require_kernel()
    model, codes = packaged
    decoder = FastDecoder(model)
    whole = decoder(codes[:4])
    for i in range(4):
        assert torch.equal(decoder(codes[i : i + 1])[0], whole[i])


@torch.no_grad()
@pytest.mark.parametrize(("at_once", "slices"), [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_slices_bound_the_memory(make_vq, monkeypatch, at_once, slices):
    assert fast_decoder._BATCH_ON_CPU == 1
    monkeypatch.setattr(fast_decoder, "_BATCH_ON_CPU", at_once)
    model = make_vq()
    decoder, seen = FastDecoder(model, native=False), []
    decoder._decoder.register_forward_hook(lambda _, latents, __: seen.append(len(latents[0])))
    codes = some_codes(model, batch=5)
    assert_close(decoder(codes), model.decode(codes), rtol=0, atol=2e-5)
    assert seen == slices


@torch.no_grad()
def test_it_notices_other_weights(make_vq):
    model = make_vq()
    decoder = FastDecoder(model)
    assert decoder.matches(model)
    assert not decoder.matches(make_vq())
    model.load_state_dict(make_vq(seed=1).state_dict())
    assert not decoder.matches(model)

    decoder = FastDecoder(model)
    model.decoder.head.bias.add_(1)
    assert not decoder.matches(model)

    decoder = FastDecoder(model)
    model.to(torch.float64)
    assert not decoder.matches(model)


def test_it_keeps_its_own_copy(make_vq):
    model = make_vq(**NATIVE)
    codes = some_codes(model)
    for native in (True, False):
        decoder = FastDecoder(model, native=native)
        before = decoder(codes)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        assert torch.equal(decoder(codes), before)
        assert not before.requires_grad


def test_weights_made_in_inference_mode(make_vq):
    with torch.inference_mode():
        model = make_vq(**NATIVE)
        decoder = FastDecoder(model)
        assert decoder.matches(model)
        assert_close(decoder(some_codes(model)), model.decode(some_codes(model)), rtol=0, atol=2e-5)


@torch.no_grad()
def test_memory_is_used_again(make_vq):
    """Earlier images stay as they were, and what is kept between images does not grow."""
    require_kernel()
    model = make_vq(**NATIVE | {"channel_mult": (1, 2, 1)})
    decoder = FastDecoder(model)
    codes = some_codes(model, batch=6)
    first = decoder(codes[:1])
    kept = first.clone()
    held = []
    for i in range(1, 6):
        decoder(codes[i : i + 1])
        held.append(sum(len(tensors) for tensors in decoder._decoder._kernel._free.values()))
    assert torch.equal(first, kept)
    assert held[1:] == [held[1]] * 4
    assert torch.equal(decoder(codes[:1]), kept)
