"""The Triton kernel of the cross entropy against torch's."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.loss import cross_entropy

kernel = pytest.importorskip("aimamba.ops.loss.triton.cross_entropy", reason="Triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make(tokens, codes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(tokens, codes, generator=generator)).to(DEVICE, dtype)
    return logits, torch.randint(codes, (tokens,), generator=generator).to(DEVICE)


@pytest.mark.parametrize("codes", [1, 7, 300, 1024])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.005)])
def test_losses_and_gradients(codes, dtype, bound):
    logits, targets = make(9, codes, dtype)
    wide = logits.double().requires_grad_()
    expected = F.cross_entropy(wide, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.mean(), wide)
    losses = kernel.cross_entropy_(logits, targets, 1 / 9, learning=True)
    assert losses.dtype == torch.float32
    assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=1e-5)
    assert (logits.double() - gradient).abs().max() <= bound / 9


def test_large_logits_and_logits_left_alone():
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, -1e30]], device=DEVICE)
    before, targets = logits.clone(), torch.tensor([1, 0], device=DEVICE)
    losses = kernel.cross_entropy_(logits, targets, 0.5, learning=False)
    assert torch.equal(logits, before)
    assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))


@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_slices_use_the_kernel(monkeypatch, frozen):
    """Everything around the kernel, which on a CPU is interpreted."""
    monkeypatch.setattr(cross_entropy, "_fused", lambda logits: True)
    generator = torch.Generator().manual_seed(1)
    leaves = [torch.randn(n, 6, generator=generator).to(DEVICE).requires_grad_() for n in (11, 20)]
    if frozen is not None:
        leaves[frozen].requires_grad_(False)
    targets = torch.randint(20, (11,), generator=generator).to(DEVICE)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    expected = F.cross_entropy(F.linear(*leaves), targets)
    loss = cross_entropy.sliced_cross_entropy(*leaves, targets, logits_at_once=60)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(3 * loss, wanted), torch.autograd.grad(3 * expected, wanted))
