"""The forms of the SSD operator against each other; ``ssd_recurrent`` is the oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from aimamba.ops.ssd.autograd import ssd_autograd
from aimamba.ops.ssd.chunked import ssd_chunked
from aimamba.ops.ssd.dispatch import ssd_scan
from aimamba.ops.ssd.reference import ssd_recurrent, ssd_step, ssd_step_dual
from tests.ops.scans import normals, parameters, sizes

NAMES = ("x", "dt", "A", "B", "C", "initial_state")
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]


def make_inputs(
    seed: int,
    *,
    length: int = 23,
    batch: int = 2,
    heads: int = 2,
    width: int = 3,
    states: int = 4,
    with_state: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    normal = normals(generator)
    dt = torch.nn.functional.softplus(normal(batch, length, heads) - 1)
    A = -16 * torch.rand(heads, generator=generator, dtype=torch.float64)
    inputs = (normal(batch, length, heads, width), dt, A, normal(batch, length, states), normal(batch, length, states))
    state = normal(batch, heads, width, states) if with_state else None
    return tuple(None if t is None else t.to(dtype) for t in (*inputs, state))


def extreme_inputs(dtype: torch.dtype) -> Inputs:
    """Log-decays from 0 to -1e4, strong and weak ones in turn and at random within every chunk."""
    x, dt, A, B, C, state = make_inputs(5, length=40, heads=4)
    exponents = torch.empty(dt.shape, dtype=torch.float64).uniform_(-8, 0, generator=torch.Generator().manual_seed(1))
    dt = 10.0**exponents
    dt[:, ::5] = 1.0
    dt[:, 3::7] = 0.0
    A = torch.tensor([0.0, -1.0, -100.0, -1e4])
    return tuple(t.to(dtype) for t in (x, dt, A, B, C, state))


CHUNKED = [ssd_chunked, ssd_autograd]


def test_all_forms_have_one_signature():
    for form in CHUNKED:
        assert parameters(form) == parameters(ssd_recurrent)
    assert parameters(ssd_scan) == [*parameters(ssd_recurrent), "backend: str | None = None"]


def test_the_kernels_have_the_same_signature():
    kernels = pytest.importorskip("aimamba.ops.ssd.triton.chunked", reason="Triton is not installed")
    assert parameters(kernels.ssd_chunked) == parameters(ssd_recurrent)


@pytest.mark.parametrize("form", CHUNKED)
@given(size=sizes(70), chunk_size=st.integers(1, 80))
def test_chunked_equals_recurrent_in_float64(form, size, chunk_size):
    inputs = make_inputs(**size)
    expected, got = ssd_recurrent(*inputs), form(*inputs, chunk_size=chunk_size)
    for ours, oracle in zip(got, expected, strict=True):
        assert ours.shape == oracle.shape
        assert_close(ours, oracle, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", CHUNKED)
@given(size=sizes(70), chunk_size=st.integers(1, 80))
def test_chunked_equals_recurrent_in_float32(form, size, chunk_size):
    inputs = make_inputs(**size, dtype=torch.float32)
    for ours, oracle in zip(form(*inputs, chunk_size=chunk_size), ssd_recurrent(*inputs), strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, oracle, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [ssd_recurrent, *CHUNKED])
@pytest.mark.parametrize("seed", range(4))
def test_bfloat16_inputs_stay_within_a_hundredth_of_the_largest_output(form, seed):
    x, dt, A, B, C, _ = make_inputs(seed, length=70, heads=3, width=8, states=16, with_state=False)
    x, B, C = (t.bfloat16() for t in (x, B, C))
    y, state = form(x, dt.float(), A.float(), B, C)
    oracle, oracle_state = ssd_recurrent(x.double(), dt.float().double(), A.float().double(), B.double(), C.double())
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert (y.double() - oracle).abs().max() <= 0.01 * oracle.abs().max()
    assert (state.double() - oracle_state).abs().max() <= 0.01 * oracle_state.abs().max()


def test_step_by_hand():
    """One head of width 1 with one state: h = exp(dt A) h + dt x B, y = C h."""
    x, dt, A = torch.tensor([[[3.0]]]), torch.tensor([[0.5]]), torch.tensor([-2.0])
    B, C, state = torch.tensor([[5.0]]), torch.tensor([[7.0]]), torch.tensor([[[[11.0]]]])
    y, after = ssd_step(x, dt, A, B, C, state)
    expected = torch.exp(torch.tensor(-1.0)) * 11 + 0.5 * 3 * 5
    assert_close(after, expected.reshape(1, 1, 1, 1))
    assert_close(y, 7 * expected.reshape(1, 1, 1))
    assert state.item() == 11.0, "the state given must not change"


def test_steps_equal_the_recurrence_against_an_independent_sum():
    """The oracle itself against the unrolled formula y_t = sum_s (C_t.B_s) exp(sum_{s<r<=t} dt_r A) dt_s x_s."""
    x, dt, A, B, C, _ = make_inputs(3, length=9, with_state=False)
    y, state = ssd_recurrent(x, dt, A, B, C)
    step_state = torch.zeros_like(state)
    for t in range(9):
        expected = torch.zeros_like(y[:, t])
        for s in range(t + 1):
            decay = torch.exp((dt[:, s + 1 : t + 1] * A).sum(dim=1))
            similarity = (C[:, t] * B[:, s]).sum(dim=-1)
            expected += (similarity[:, None] * decay * dt[:, s])[..., None] * x[:, s]
        stepped, step_state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], step_state)
        assert_close(y[:, t], expected, rtol=1e-12, atol=1e-12)
        assert_close(stepped, expected, rtol=1e-12, atol=1e-12)
    assert_close(step_state, state, rtol=0, atol=0)


@pytest.mark.parametrize("form", CHUNKED)
@given(size=sizes(70), chunk_size=st.integers(1, 80), where=st.floats(0, 1))
def test_splitting_a_sequence_and_passing_the_state_on_changes_nothing(form, size, chunk_size, where):
    x, dt, A, B, C, state = make_inputs(**size)
    cut = round(where * x.shape[1])
    whole, final = form(x, dt, A, B, C, state, chunk_size=chunk_size)
    first, between = form(x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], state, chunk_size=chunk_size)
    second, end = form(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], between, chunk_size=chunk_size)
    assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-10, atol=1e-10)
    assert_close(end, final, rtol=1e-10, atol=1e-10)


def gradients(form, inputs: Inputs, **options: int) -> dict[str, Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y, state = form(*leaves, **options)
    generator = torch.Generator().manual_seed(9)
    weights = (torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, state))
    sum((t * weight).sum() for t, weight in zip((y, state), weights, strict=True)).backward()
    return {name: leaf.grad for name, leaf in zip(NAMES, leaves, strict=True)}


@pytest.mark.parametrize("chunk_size", [1, 5, 16, 64])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_gradients_of_chunked_equal_those_of_recurrent(length, chunk_size):
    inputs = make_inputs(length, length=length)
    expected = gradients(ssd_recurrent, inputs)
    for name, gradient in gradients(ssd_chunked, inputs, chunk_size=chunk_size).items():
        assert_close(gradient, expected[name], rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_gradcheck():
    inputs = [tensor.requires_grad_() for tensor in make_inputs(2, length=5, batch=1, heads=2, width=2, states=2)]
    assert torch.autograd.gradcheck(lambda *leaves: ssd_chunked(*leaves, chunk_size=2), inputs)


@pytest.mark.parametrize("chunk_size", [1, 7, 40])
def test_extreme_decays_in_float64(chunk_size):
    inputs = extreme_inputs(torch.float64)
    for ours, oracle in zip(ssd_chunked(*inputs, chunk_size=chunk_size), ssd_recurrent(*inputs), strict=True):
        assert_close(ours, oracle, rtol=1e-10, atol=1e-10)
    expected = gradients(ssd_recurrent, inputs)
    for name, gradient in gradients(ssd_chunked, inputs, chunk_size=chunk_size).items():
        assert gradient.isfinite().all(), name
        scale = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() <= 1e-10 * scale, name


@pytest.mark.parametrize("chunk_size", [1, 7, 40])
def test_extreme_decays_in_float32(chunk_size):
    inputs = extreme_inputs(torch.float32)
    exact = tuple(tensor.double() for tensor in inputs)
    for ours, oracle in zip(ssd_chunked(*inputs, chunk_size=chunk_size), ssd_recurrent(*exact), strict=True):
        assert (ours.double() - oracle).abs().max() <= 1e-4 * oracle.abs().max()
    expected = gradients(ssd_recurrent, exact)
    for name, gradient in gradients(ssd_chunked, inputs, chunk_size=chunk_size).items():
        assert gradient.isfinite().all(), name
        assert (gradient.double() - expected[name]).abs().max() <= 1e-3 * expected[name].abs().max(), name


def empty_cache(x: Tensor, B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, width = x.shape
    wide = torch.promote_types(dtype, torch.float32)
    return (
        torch.zeros(batch, heads, length, width, dtype=dtype),
        torch.zeros(batch, length, B.shape[-1], dtype=dtype),
        torch.zeros(batch, heads, length, dtype=wide),
    )


@given(size=sizes(70), alike=st.booleans())
def test_dual_steps_equal_the_recurrence(size, alike):
    x, dt, A, B, C, _ = make_inputs(**size | {"with_state": False})
    expected, _ = ssd_recurrent(x, dt, A, B, C)
    cache = empty_cache(x, B, x.dtype)
    for t in range(x.shape[1]):
        position = t if alike else torch.full((len(x),), t)
        y = ssd_step_dual(x[:, t], dt[:, t], A, B[:, t], C[:, t], cache, position)
        assert_close(y, expected[:, t], rtol=1e-10, atol=1e-10)


def test_dual_steps_of_rows_at_different_positions():
    x, dt, A, B, C, _ = make_inputs(3, length=12, batch=3, with_state=False)
    expected, _ = ssd_recurrent(x, dt, A, B, C)
    cache, position, rows = empty_cache(x, B, x.dtype), torch.tensor([0, 4, 7]), torch.arange(3)
    for row, ahead in enumerate(position.tolist()):  # what each row has taken before they meet
        own = tuple(part[row : row + 1] for part in cache)
        for t in range(ahead):
            at = slice(row, row + 1), t
            ssd_step_dual(x[at], dt[at], A, B[at], C[at], own, torch.tensor([t]))
    for _ in range(5):
        at = rows, position
        assert_close(
            ssd_step_dual(x[at], dt[at], A, B[at], C[at], cache, position), expected[at], rtol=1e-10, atol=1e-10
        )
        position = position + 1


def test_dual_steps_with_extreme_decays():
    x, dt, A, B, C, _ = extreme_inputs(torch.float32)
    expected, _ = ssd_recurrent(*(t.double() for t in (x, dt, A, B, C)))
    cache = empty_cache(x, B, torch.float32)
    for t in range(x.shape[1]):
        y = ssd_step_dual(x[:, t], dt[:, t], A, B[:, t], C[:, t], cache, torch.full((len(x),), t))
        assert_close(y.double(), expected[:, t], rtol=1e-4, atol=1e-4)


def test_dual_steps_in_bfloat16_are_no_worse_than_the_state_form():
    x, dt, A, B, C, _ = make_inputs(11, length=64, heads=3, width=8, states=16, with_state=False)
    narrow = tuple(t.bfloat16() for t in (x, B, C))
    expected, _ = ssd_recurrent(narrow[0].double(), dt, A, *(t.double() for t in narrow[1:]))
    cache = empty_cache(x, B, torch.bfloat16)
    for t in range(64):
        at = narrow[0][:, t], dt[:, t].float(), A.float(), narrow[1][:, t], narrow[2][:, t]
        y = ssd_step_dual(*at, cache, torch.full((len(x),), t))
        assert y.dtype == torch.bfloat16
        assert_close(y.double(), expected[:, t], rtol=0.02, atol=0.02 * expected.std().item())
