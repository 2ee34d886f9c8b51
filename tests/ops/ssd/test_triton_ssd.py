"""The Triton kernels of the SSD against the plain form: outputs, last states and every gradient."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.ssd import chunked

scan = pytest.importorskip("aimamba.ops.ssd.triton.chunked", reason="Triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ("y", "state", "x", "dt", "A", "B", "C", "initial_state")


def make(batch, length, heads, width, states, *, dtype=torch.float32, first=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    dt = torch.nn.functional.softplus(normal(batch, length, heads) - 4)  # so that much is left from chunk to chunk
    A = -16 * torch.rand(heads, generator=generator).to(DEVICE)
    x, B, C = normal(batch, length, heads, width), normal(batch, length, states), normal(batch, length, states)
    state = normal(batch, heads, width, states) if first else None
    return x.to(dtype), dt, A, B.to(dtype), C.to(dtype), state


def outcome(form, inputs, *, through="both", **options):
    """Return outputs, last state and gradients; ``through`` names the results they are gradients of."""
    leaves = [None if tensor is None else tensor.detach().clone().requires_grad_() for tensor in inputs]
    found = form(*leaves, **options)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(tensor.shape, generator=generator).to(DEVICE, tensor.dtype) for tensor in found]
    used = {"both": slice(None), "y": slice(1), "state": slice(1, None)}[through]
    torch.autograd.backward(found[used], weights[used])
    gradients = (None if leaf is None else leaf.grad for leaf in leaves)
    return dict(zip(NAMES, (*(tensor.detach() for tensor in found), *gradients), strict=True))


def exact(inputs, **options):
    wide = tuple(None if tensor is None else tensor.double() for tensor in inputs)
    return outcome(chunked.ssd_chunked, wide, **options)


def assert_near(found, expected, bound):
    """Compare within ``bound`` times the largest number of each."""
    for name, wanted in expected.items():
        if wanted is None:
            assert found[name] is None or not found[name].any(), name
            continue
        assert found[name].shape == wanted.shape, name
        assert (found[name].double() - wanted).abs().max() <= bound * wanted.abs().max(), name


@pytest.mark.parametrize(("width", "states"), [(16, 16), (64, 128), (5, 20)])
@pytest.mark.parametrize("length", [1, 16, 37])
@pytest.mark.parametrize("first", [False, True])
def test_float32(width, states, length, first):
    inputs = make(2, length, 2, width, states, first=first)
    found = outcome(scan.ssd_chunked, inputs, chunk_size=16)
    assert {name: each.dtype for name, each in found.items() if each is not None} == dict.fromkeys(
        NAMES if first else NAMES[:-1], torch.float32
    )
    assert_near(found, exact(inputs), 1e-4)


@pytest.mark.parametrize(("width", "states", "chunk"), [(64, 128, 64), (16, 16, 32), (5, 20, 100)])
@pytest.mark.parametrize("length", [3, 70])
def test_bfloat16_within_the_bound_of_the_plain_forms(width, states, chunk, length):
    """The interpreter truncates bfloat16 where a device rounds: errors on a device are about half as large."""
    inputs = make(1, length, 3, width, states, dtype=torch.bfloat16)
    found = outcome(scan.ssd_chunked, inputs, chunk_size=chunk)
    assert [found[name].dtype for name in ("y", "x", "B", "C")] == [torch.bfloat16] * 4
    assert [found[name].dtype for name in ("state", "dt", "A", "initial_state")] == [torch.float32] * 4
    assert_near(found, exact(inputs), 0.02)


@pytest.mark.parametrize("through", ["y", "state"])
@pytest.mark.parametrize("first", [False, True])
def test_gradients_of_outputs_or_of_the_last_state_alone(through, first):
    inputs = make(1, 37, 2, 16, 16, first=first)
    found = outcome(scan.ssd_chunked, inputs, chunk_size=16, through=through)
    assert_near(found, exact(inputs, through=through), 1e-4)


@pytest.mark.parametrize("heads", [1, 12, 17])
def test_heads_come_in_groups_of_any_size(heads):
    """1, 4 and 1 at a time; gradients of B and C are sums over all of them."""
    inputs = make(1, 20, heads, 16, 16)
    assert_near(outcome(scan.ssd_chunked, inputs, chunk_size=16), exact(inputs), 1e-4)


def test_extreme_decays():
    """Log-decays from 0 to -1e4: those below the lowest are clamped, and have no gradient."""
    x, _, _, B, C, state = make(1, 40, 4, 16, 16)
    generator = torch.Generator().manual_seed(1)
    dt = (10.0 ** (-8 * torch.rand(1, 40, 4, generator=generator))).to(DEVICE)
    dt[:, ::5], dt[:, 3::7] = 1.0, 0.0
    A = torch.tensor([0.0, -1.0, -100.0, -1e4], device=DEVICE)
    inputs = x, dt, A, B, C, state
    found, expected = outcome(scan.ssd_chunked, inputs, chunk_size=16), exact(inputs, chunk_size=16)
    assert all(each.isfinite().all() for each in found.values())
    assert_near(found, expected, 1e-3)
    clamped = make(1, 16, 1, 16, 16)
    steps = torch.full((1, 16, 1), 4.0, device=DEVICE)
    gradients = outcome(scan.ssd_chunked, (clamped[0], steps, A[2:3], *clamped[3:]), chunk_size=16)
    assert gradients["A"].item() == 0.0
    assert gradients["dt"].any()


def test_slices_of_one_projection_need_no_copy():
    inputs = make(2, 20, 2, 16, 16)
    both = torch.cat([inputs[0].flatten(2), inputs[3], inputs[4]], dim=-1)
    x, B, C = both.split([32, 16, 16], dim=-1)
    sliced = scan.ssd_chunked(x.unflatten(-1, (2, 16)), *inputs[1:3], B, C, inputs[5])
    turned = scan.ssd_chunked(inputs[0].mT.contiguous().mT, *inputs[1:], chunk_size=64)
    assert_close(sliced, scan.ssd_chunked(*inputs), rtol=1e-5, atol=1e-5)
    assert_close(turned, sliced, rtol=1e-5, atol=1e-5)


def test_the_same_in_every_run_and_in_every_batch():
    inputs = make(2, 32, 3, 16, 16, dtype=torch.bfloat16)
    first, again = (outcome(scan.ssd_chunked, inputs, chunk_size=16) for _ in range(2))
    for name, each in first.items():
        assert torch.equal(each, again[name]), name
    x, dt, A, B, C, state = inputs
    alone = outcome(scan.ssd_chunked, (x[1:], dt[1:], A, B[1:], C[1:], state[1:]), chunk_size=16)
    assert torch.equal(alone["y"], first["y"][1:])


def test_no_tokens():
    x, dt, A, B, C, state = make(2, 0, 2, 16, 16)
    y, last = scan.ssd_chunked(x, dt, A, B, C, state)
    assert y.shape == x.shape
    assert torch.equal(last, state)


def test_nothing_is_kept_without_a_backward_pass(monkeypatch):
    kept = []
    plain = scan.forward
    monkeypatch.setattr(
        scan, "forward", lambda *inputs, keep, **rest: kept.append(keep) or plain(*inputs, keep=keep, **rest)
    )
    inputs = make(1, 20, 1, 16, 16, first=False)
    scan.ssd_chunked(*inputs)
    scan.ssd_chunked(inputs[0].requires_grad_(), *inputs[1:])
    assert kept == [False, True]


@pytest.mark.parametrize(
    ("asked", "length", "dtype", "taken"),
    [
        (64, 256, torch.bfloat16, 64),
        (256, 256, torch.bfloat16, 64),
        (48, 256, torch.bfloat16, 32),
        (64, 20, torch.bfloat16, 32),
        (1, 1, torch.bfloat16, 16),
        (64, 256, torch.float32, 16),
    ],
)
def test_chunks(asked, length, dtype, taken):
    assert scan.chunk_length(torch.empty(1, length, 1, 16, dtype=dtype), asked) == taken
