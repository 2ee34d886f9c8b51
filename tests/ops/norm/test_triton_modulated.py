"""The Triton kernels between two blocks against the plain form: results and every gradient."""

import pytest
import torch

from aimamba.ops.norm import modulated
from aimamba.ops.norm.modulated import EPS, residual_modulated_norm
from aimamba.ops.norm.rms import rms_norm

fused = pytest.importorskip("aimamba.ops.norm.triton.modulated", reason="Triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ("residual", "mixed", "gate", "weight", "scale", "shift", "before")
# Whether there is something to add, whether there are two norms, and whether anything else reads the residual.
CASES = [(True, False, True), (False, False, True), (True, True, True), (True, True, False), (False, True, True)]


def make(batch, length, width, *, add=True, two=False, dtype=torch.float32):
    """Return the arguments; those of the modulation are slices, as in the model."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    gate, scale, shift = normal(batch, 3, width).to(dtype).unbind(1)
    mixed = normal(batch, length, width).to(dtype)
    inputs = normal(batch, length, width), mixed, gate, normal(width), scale, shift, normal(width)
    left_out = (() if add else ("mixed", "gate")) + (() if two else ("before",))
    return {name: each for name, each in zip(NAMES, inputs, strict=True) if name not in left_out}


def outcome(form, inputs, *, read_residual=True):
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    new, hidden = form(*(leaves.get(name) for name in NAMES))
    generator = torch.Generator().manual_seed(1)
    slopes = [torch.randn(new.shape, generator=generator).to(DEVICE) for _ in range(2)]
    total = (hidden * slopes[1].to(hidden.dtype)).sum().to(new.dtype)
    if read_residual:
        total = total + (new * slopes[0].to(new.dtype)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(("new", "hidden", *leaves), (new.detach(), hidden.detach(), *gradients), strict=True))


def ours(inputs, **options):
    dtype = inputs["shift"].dtype
    return outcome(lambda *all_: fused.residual_modulated_norm(*all_, dtype=dtype, eps=EPS), inputs, **options)


def written_out(residual, mixed, gate, weight, scale, shift, before):
    if mixed is not None:
        residual = residual + gate[:, None] * mixed
    normal = residual if before is None else rms_norm(residual, before, eps=EPS)
    return residual, rms_norm(normal, weight, eps=EPS) * (1 + scale[:, None]) + shift[:, None]


@pytest.mark.parametrize(("add", "two", "read_residual"), CASES)
@pytest.mark.parametrize(("batch", "length", "width"), [(1, 1, 1), (2, 37, 40), (3, 16, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients(batch, length, width, add, two, read_residual, dtype):
    bound = {torch.float32: 2e-6 if two else 1e-6, torch.bfloat16: 0.01}[dtype]
    inputs = make(batch, length, width, add=add, two=two, dtype=dtype)
    found = ours(inputs, read_residual=read_residual)
    doubles = {name: tensor.double() for name, tensor in inputs.items()}
    expected = outcome(written_out, doubles, read_residual=read_residual)
    assert found["hidden"].dtype == dtype
    assert {name: found[name].dtype for name in inputs} == {name: tensor.dtype for name, tensor in inputs.items()}
    for name, wanted in expected.items():
        assert (found[name].double() - wanted).abs().max() <= bound * max(1.0, float(wanted.abs().max())), name


@pytest.mark.parametrize("two", [False, True])
def test_the_same_bits_in_every_run(two):
    inputs = make(2, 40, 24, two=two)
    first, second = ours(inputs), ours(inputs)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(("add", "two"), [(True, False), (False, False), (True, True), (False, True)])
def test_the_operators_that_the_compiler_sees(add, two):
    inputs = make(1, 5, 16, add=add, two=two)
    leaves = [None if name not in inputs else inputs[name].detach().requires_grad_() for name in NAMES]
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(torch.ops.aimamba.residual_modulated_norm, (*leaves, torch.float32, EPS), test_utils=checks)


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("add", [True, False])
def test_the_plain_form(add, two):
    inputs = {name: tensor.double() for name, tensor in make(2, 5, 8, add=add, two=two).items()}
    torch.testing.assert_close(outcome(residual_modulated_norm, inputs), outcome(written_out, inputs))
    unchanged, _ = residual_modulated_norm(*(inputs.get(name) for name in NAMES))
    assert (unchanged is inputs["residual"]) == (not add)


@pytest.mark.parametrize("two", [False, True])
def test_the_kernels_are_used_where_they_apply(two, monkeypatch):
    monkeypatch.setattr(modulated, "kernels_apply", lambda *_: True)
    inputs = make(2, 5, 8, two=two)
    torch.testing.assert_close(outcome(residual_modulated_norm, inputs), ours(inputs), rtol=0, atol=0)
