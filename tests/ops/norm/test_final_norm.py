"""What follows the last block: the plain form, and the Triton kernels against it, with every gradient."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.norm import final
from aimamba.ops.norm.modulated import EPS
from aimamba.ops.norm.rms import rms_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make(batch, length, width, dtype=torch.float32):
    """Return the arguments; those of the modulations are slices, as in the model."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    gate, scale, shift = normal(batch, 3, width).to(dtype).unbind(1)
    mixed = normal(batch, length, width).to(dtype)
    return [normal(batch, length, width), mixed, gate, normal(width), normal(width), scale, shift]


def outcome(form, inputs, *, read_residual=True):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    new, hidden = form(*leaves)
    generator = torch.Generator().manual_seed(1)
    slopes = [torch.randn(new.shape, generator=generator).to(DEVICE) for _ in range(2)]
    total = (hidden * slopes[1].to(hidden.dtype)).sum().to(new.dtype)
    if read_residual:
        total = total + (new * slopes[0].to(new.dtype)).sum()
    return [new.detach(), hidden.detach(), *torch.autograd.grad(total, leaves)]


def written_out(residual, mixed, gate, norm_weight, final_weight, scale, shift):
    residual = residual + gate[:, None] * mixed
    hidden = rms_norm(rms_norm(residual, norm_weight, eps=EPS), final_weight, eps=EPS)
    return residual, hidden * (1 + scale[:, None]) + shift[:, None]


@pytest.fixture
def ours():
    fused = pytest.importorskip("aimamba.ops.norm.triton.final", reason="Triton is not installed")
    return lambda *inputs: fused.final_norm(*inputs, dtype=inputs[-1].dtype, eps=EPS)


@pytest.mark.parametrize("read_residual", [True, False])
@pytest.mark.parametrize(("batch", "length", "width"), [(1, 1, 1), (2, 37, 40), (3, 16, 64)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 0.01)])
def test_the_kernels(ours, batch, length, width, dtype, bound, read_residual):
    inputs = make(batch, length, width, dtype)
    found = outcome(ours, inputs, read_residual=read_residual)
    expected = outcome(written_out, [tensor.double() for tensor in inputs], read_residual=read_residual)
    assert [tensor.dtype for tensor in found[1:]] == [dtype, *(tensor.dtype for tensor in inputs)]
    for ours_, wanted in zip(found, expected, strict=True):
        assert (ours_.double() - wanted).abs().max() <= bound * max(1.0, float(wanted.abs().max()))


def test_the_kernels_give_the_same_bits_in_every_run(ours):
    inputs = make(2, 40, 24)
    for first, second in zip(outcome(ours, inputs), outcome(ours, inputs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_plain_form(dtype):
    inputs = [tensor.to(dtype) for tensor in make(2, 5, 8)]
    assert_close(outcome(final.final_norm, inputs), outcome(written_out, inputs))


def test_the_kernels_are_used_where_they_apply(ours, monkeypatch):
    monkeypatch.setattr(final, "kernels_apply", lambda *_: True)
    inputs = make(2, 5, 8)
    assert_close(final.final_norm(*inputs), ours(*inputs), rtol=0, atol=0)
