"""The Triton kernels between two blocks against the plain form: results and every gradient."""

import pytest
import torch

from aimamba.ops.norm.modulated import EPS, residual_modulated_norm

fused = pytest.importorskip("aimamba.ops.norm.triton.modulated", reason="Triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ("residual", "mixed", "gate", "weight", "scale", "shift")


def make(batch, length, width, *, add=True, dtype=torch.float32):
    """Return the arguments; those of the modulation are slices, as in the model."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    gate, scale, shift = normal(batch, 3, width).to(dtype).unbind(1)
    mixed = normal(batch, length, width).to(dtype)
    inputs = normal(batch, length, width), mixed, gate, normal(width), scale, shift
    return {name: each for name, each in zip(NAMES, inputs, strict=True) if add or name not in ("mixed", "gate")}


def outcome(form, inputs):
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    new, hidden = form(*(leaves.get(name) for name in NAMES))
    generator = torch.Generator().manual_seed(1)
    slopes = [torch.randn(new.shape, generator=generator).to(DEVICE) for _ in range(2)]
    total = (new * slopes[0].to(new.dtype)).sum() + (hidden * slopes[1].to(hidden.dtype)).sum().to(new.dtype)
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(("new", "hidden", *leaves), (new.detach(), hidden.detach(), *gradients), strict=True))


def ours(inputs):
    dtype = inputs["shift"].dtype
    return outcome(lambda *all_: fused.residual_modulated_norm(*all_, dtype=dtype, eps=EPS), inputs)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(("batch", "length", "width"), [(1, 1, 1), (2, 37, 40), (3, 16, 64)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_results_and_gradients(batch, length, width, add, dtype, bound):
    inputs = make(batch, length, width, add=add, dtype=dtype)
    found = ours(inputs)
    expected = outcome(residual_modulated_norm, {name: tensor.double() for name, tensor in inputs.items()})
    assert found["hidden"].dtype == dtype
    assert {name: found[name].dtype for name in inputs} == {name: tensor.dtype for name, tensor in inputs.items()}
    for name, wanted in expected.items():
        assert (found[name].double() - wanted).abs().max() <= bound * max(1.0, float(wanted.abs().max())), name


def test_the_same_bits_in_every_run():
    inputs = make(2, 40, 24)
    first, second = ours(inputs), ours(inputs)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("add", [True, False])
def test_the_operators_that_the_compiler_sees(add):
    inputs = make(1, 5, 16, add=add)
    leaves = [None if name not in inputs else inputs[name].detach().requires_grad_() for name in NAMES]
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(torch.ops.aimamba.residual_modulated_norm, (*leaves, torch.float32, EPS), test_utils=checks)


def test_the_plain_form_without_and_with_something_to_add():
    inputs = make(2, 3, 8)
    without, _ = residual_modulated_norm(inputs["residual"], None, None, *(inputs[name] for name in NAMES[3:]))
    assert without is inputs["residual"]
    new, _ = residual_modulated_norm(*(inputs[name] for name in NAMES))
    torch.testing.assert_close(new, inputs["residual"] + inputs["gate"][:, None] * inputs["mixed"])
