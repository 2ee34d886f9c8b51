"""Group norms by Triton's kernels against PyTorch's, channels last in and out."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.norm import group as dispatch

kernels = pytest.importorskip("aimamba.ops.norm.triton.group", reason="Triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
SMALL = kernels.Launch(numbers=256, parts=3, warps=4, stages=2)  # several tiles and parts for few pixels


def make(batch, channels, height, width, *, dtype=torch.float32, mean=0.0):
    """Return images, channels last, and a scale and a shift of each channel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator) + mean
    scale, shift = torch.randn(2, channels, generator=generator).to(DEVICE, dtype)
    return x.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last), scale, shift


def exact(x, scale, shift, groups, silu):
    y = F.group_norm(x.double(), groups, scale.double(), shift.double(), EPS)
    return F.silu(y) if silu else y


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 64, 9, 7), 32),  # two channels a group; pixels that do not fill the last tile
        ((3, 48, 5, 5), 16),  # three channels a group
        ((1, 36, 8, 3), 3),  # groups and channels that are no powers of two
        ((2, 12, 4, 4), 12),  # one channel a group
        ((2, 24, 6, 2), 1),  # one group
        ((2, 40, 1, 1), 8),  # one pixel
        ((1, 512, 2, 3), 32),  # more channels than numbers in a tile
    ],
)
def test_equals_torch(shape, groups, silu):
    x, scale, shift = make(*shape)
    y = kernels.group_norm(x, scale, shift, groups=groups, eps=EPS, silu=silu, launch=SMALL)
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y.double(), exact(x, scale, shift, groups, silu), rtol=1e-5, atol=1e-5)
    assert_close(kernels.group_norm(x, scale, shift, groups=groups, eps=EPS, silu=silu), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_rounded_once(dtype):
    x, scale, shift = make(2, 64, 9, 7, dtype=dtype)
    y = kernels.group_norm(x, scale, shift, groups=8, eps=EPS, silu=True, launch=SMALL)
    assert y.dtype == dtype
    assert_close(y.double(), exact(x, scale, shift, 8, True), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_a_large_mean_costs_no_accuracy():
    """The mean of squares minus the square of the mean would keep nothing of the variance here."""
    x, scale, shift = make(2, 32, 16, 16, mean=10_000.0)
    narrow = x.square().mean() - x.mean().square()
    assert not 0.5 < float(narrow) < 2, "float32 has no room for it"
    y = kernels.group_norm(x, scale, shift, groups=4, eps=EPS, silu=False, launch=SMALL)
    assert_close(y.double(), exact(x, scale, shift, 4, False), rtol=0, atol=0.01)


@torch.no_grad()
def test_channels_that_are_far_apart_share_a_variance():
    x, scale, shift = make(1, 16, 6, 6)
    x = x + torch.linspace(-50, 50, 16, device=DEVICE).reshape(1, 16, 1, 1)
    y = kernels.group_norm(x, scale, shift, groups=2, eps=EPS, silu=False, launch=SMALL)
    assert_close(y.double(), exact(x, scale, shift, 2, False), rtol=1e-5, atol=1e-5)


def test_other_layouts_are_copied_first():
    x, scale, shift = make(2, 16, 6, 10)
    expected = kernels.group_norm(x, scale, shift, groups=4, eps=EPS, silu=True, launch=SMALL)
    wide = torch.zeros(2, 16, 6, 20, device=DEVICE)
    wide[..., ::2] = x
    for other in (x.contiguous(), wide[..., ::2], x.mT.contiguous().mT):
        y = kernels.group_norm(other, scale, shift, groups=4, eps=EPS, silu=True, launch=SMALL)
        assert torch.equal(y, expected)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_an_image_does_not_depend_on_its_batch_nor_on_the_run():
    x, scale, shift = make(3, 16, 6, 10)
    options = {"groups": 4, "eps": EPS, "silu": True, "launch": SMALL}
    whole = kernels.group_norm(x, scale, shift, **options)
    for index in range(3):
        assert torch.equal(kernels.group_norm(x[index : index + 1], scale, shift, **options)[0], whole[index])


def test_damage_shows():
    x, scale, shift = make(2, 16, 4, 4)
    x[0, 3, 1, 1] = torch.nan
    y = kernels.group_norm(x, scale, shift, groups=4, eps=EPS, silu=True, launch=SMALL)
    assert y[0, :4].isnan().all()
    assert y[0, 4:].isfinite().all()
    assert y[1].isfinite().all()


def test_what_the_kernels_do_not_take():
    x, scale, _ = make(1, 8, 2, 2)
    assert dispatch._unfit(x, scale) is None
    assert "float64" in dispatch._unfit(x.double(), scale)
    assert "no images" in dispatch._unfit(x[:0], scale)
    assert "4096 channels" in dispatch._unfit(x.new_zeros(1, 5000, 1, 1), scale)
    assert "backward" in dispatch._unfit(x.clone().requires_grad_(), scale)
    with torch.no_grad():
        assert dispatch._unfit(x.clone().requires_grad_(), scale) is None
    assert "the images are on cpu" in dispatch.unsupported(x.cpu(), scale)


@pytest.mark.parametrize("silu", [True, False])
def test_gradients_come_from_torch(silu):
    x, scale, shift = (each.double().requires_grad_() for each in make(2, 8, 3, 2))
    y = dispatch.group_norm(x, scale, shift, groups=4, eps=EPS, silu=silu)
    assert_close(y, exact(x, scale, shift, 4, silu))
    y.sum().backward()
    assert all(each.grad is not None for each in (x, scale, shift))


@pytest.fixture
def trial():
    dispatch._trial.cache_clear()
    yield dispatch._trial
    dispatch._trial.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_trial_passes(trial, dtype):
    assert trial(DEVICE, dtype) is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (RuntimeError("no C compiler\nand more"), "RuntimeError: no C compiler"),
        (lambda y: y * 1.1, "their results are wrong"),
        (lambda y: y * torch.nan, "their results are wrong"),
    ],
)
def test_kernels_that_fail_are_not_used_and_told_once(trial, monkeypatch, caplog, fault, reason):
    right = kernels.group_norm

    def wrong(*given, **named):
        if isinstance(fault, Exception):
            raise fault
        return fault(right(*given, **named))

    monkeypatch.setattr(kernels, "group_norm", wrong)
    assert [trial(DEVICE, torch.float32) for _ in range(2)] == [reason] * 2
    [line] = caplog.messages
    assert line == f"group norms on {DEVICE} are PyTorch's, not Triton kernels: {reason}"
