"""The native kernel of whole sequences against PyTorch's operations in float64."""

import itertools
import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from aimamba.ops.mixer import sequence as plain
from aimamba.ops.mixer.native import sequence as native
from aimamba.ops.mixer.native.sequence import load_kernel
from aimamba.ops.mixer.weights import MixerWeights

NAMES = ("projected", *MixerWeights._fields)


@pytest.fixture(scope="module")
def kernel():
    if load_kernel() is None:
        pytest.skip("no C++ compiler here")


def example(batch, length, heads, width, state, *, taps=4, seed=0, dtype=torch.float64, step=-3.0):
    """Return inputs of a mixer; the step sizes are softplus of numbers around ``step``."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, around=0.0):
        return torch.randn(shape, generator=rng, dtype=torch.float64).mul(scale).add(around).to(dtype)

    inner = heads * width
    channels = inner + 2 * state
    weights = MixerWeights(
        normal(channels, taps, scale=0.5),
        normal(channels, scale=0.1),
        normal(heads, around=step),
        (torch.rand(heads, generator=rng, dtype=torch.float64) * 15 + 1).log().to(dtype),
        normal(heads),
        normal(inner, scale=0.1, around=1.0),
    )
    return normal(batch, length, inner + channels + heads), weights


def with_gradients(function, projected, weights, dout):
    """Return the output and all gradients; that of A_log is divided by A, which makes it the gradient of A."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (projected, *weights)]
    out = function(leaves[0], MixerWeights(*leaves[1:]))
    gradients = dict(zip(NAMES, torch.autograd.grad(out, leaves, dout.to(out.dtype)), strict=True))
    gradients["A_log"] = gradients["A_log"] / -weights.A_log.exp()
    return [out.detach(), *gradients.values()]


def compare(projected, weights, state, dtype, share, sums):
    close(*both(projected, weights, state, dtype), share, sums)


def both(projected, weights, state, dtype):
    """Return outputs and gradients of the kernel in ``dtype``, and of PyTorch in float64."""
    heads, inner = len(weights.A_log), len(weights.norm_weight)
    dout = torch.randn(*projected.shape[:2], inner, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert projected.shape[2] == 2 * inner + 2 * state + heads
    narrow = projected.to(dtype)
    wanted = with_gradients(
        lambda x, w: plain.mixer_sequence(x, w, state_size=state), narrow.double(), weights, dout.to(dtype)
    )
    got = with_gradients(
        lambda x, w: native.mixer_sequence(x, w, state_size=state),
        narrow,
        MixerWeights(*(weight.float() for weight in weights)),
        dout.to(dtype),
    )
    return got, wanted


def close(got, wanted, share, sums):
    """Compare within ``share`` of the largest number; ``sums`` is the share for sums over all tokens of a head.

    The output hardly depends on the scale of what is normalised, so such sums may all but cancel: hence a least bound.
    """
    for name, g, w in zip(("out", *NAMES), got, wanted, strict=True):
        assert g.isfinite().all(), name
        largest = float(w.abs().max())
        atol = sums * max(largest, 0.1) if name in ("dt_bias", "A_log", "D") else share * largest
        assert_close(g.double(), w, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


FLOAT32, BFLOAT16 = (torch.float32, 2e-5, 1e-4), (torch.bfloat16, 0.02, 0.1)  # with bounds
SHAPES = [(2, 256, 3, 64, 128), (1, 1, 1, 32, 32), (2, 65, 2, 96, 64), (3, 130, 5, 32, 32), (1, 512, 2, 64, 32)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_plain_operations(kernel, shape):
    projected, weights = example(*shape)
    compare(projected, weights, shape[-1], *FLOAT32)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 140), st.integers(1, 4), st.sampled_from([32, 64]), st.integers(1, 4))
def test_any_shape(kernel, batch, length, heads, width, taps):
    projected, weights = example(batch, length, heads, width, 32, taps=taps, seed=length)
    compare(projected, weights, 32, *FLOAT32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_within_its_bound(kernel, shape):
    projected, weights = example(*shape)
    compare(projected, weights, shape[-1], *BFLOAT16)


def test_bfloat16_is_no_worse_than_the_plain_operations(kernel):
    projected, weights = example(2, 256, 4, 64, 128)
    got, wanted = both(projected, weights, 128, torch.bfloat16)
    dout = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    single = MixerWeights(*(weight.float() for weight in weights))
    operations = with_gradients(
        lambda x, w: plain.mixer_sequence(x, w, state_size=128), projected.bfloat16(), single, dout.bfloat16()
    )
    for name, g, p, w in zip(("out", *NAMES), got, operations, wanted, strict=True):
        assert (g.double() - w).norm() < 1.5 * (p.double() - w).norm(), name


@pytest.mark.parametrize("step", [-12.0, 3.0, 30.0], ids=["no decay", "much decay", "decays beyond the lowest"])
def test_extreme_step_sizes(kernel, step):
    projected, weights = example(2, 100, 2, 32, 32, step=step)
    compare(projected, weights, 32, torch.float32, 1e-4, 1e-4)


def test_weights_of_norm_that_are_zero(kernel):
    projected, weights = example(1, 70, 2, 32, 32)
    weights.norm_weight[::3] = 0
    compare(projected, weights, 32, *FLOAT32)


def bits(dtype):
    projected, weights = example(3, 150, 5, 64, 32, dtype=torch.float32)
    dout = torch.randn(3, 150, 320, generator=torch.Generator().manual_seed(9))
    return with_gradients(lambda x, w: native.mixer_sequence(x, w, state_size=32), projected.to(dtype), weights, dout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_with_any_threads(kernel, dtype, monkeypatch):
    results = []
    before = torch.get_num_threads()
    try:
        for threads, openmp in itertools.product((1, 2, 5), (True, False)):
            torch.set_num_threads(threads)
            if not openmp:
                monkeypatch.setattr(native, "parallel_regions", lambda: None)
            results.append(bits(dtype))
            monkeypatch.undo()
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_it_is_the_same_kernel(kernel, dtype):
    """It is an operator of PyTorch; the code around it is left to the compiler."""
    projected, weights = example(2, 40, 2, 32, 32, taps=3, dtype=torch.float32)
    projected, dout = projected.to(dtype), torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(9))

    def function(x, w):
        return native._forward(x * 1.5, list(w), 32)[0]

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    wanted = with_gradients(function, projected, weights, dout)
    for got, one in zip(with_gradients(compiled, projected, weights, dout), wanted, strict=True):
        assert torch.equal(got, one)


def test_the_operator_keeps_to_the_rules(kernel):
    projected, weights = example(1, 40, 2, 32, 32, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (projected, *weights)]
    torch.library.opcheck(native._forward, (leaves[0], leaves[1:], 32))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize("flags", [("-march=x86-64-v3",), ("-march=x86-64",)], ids=["AVX2", "SSE2"])
@pytest.mark.parametrize("bounds", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_lesser_processors(kernel, monkeypatch, flags, bounds):
    lesser = load_kernel(flags)
    monkeypatch.setattr(native, "_kernel", lambda: lesser)
    projected, weights = example(2, 90, 3, 64, 32)
    compare(projected, weights, 32, *bounds)


def test_inputs_need_not_be_contiguous(kernel):
    projected, weights = example(2, 40, 2, 32, 32, dtype=torch.float32)
    strided = projected.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(
        native.mixer_sequence(strided, weights, state_size=32), native.mixer_sequence(projected, weights, state_size=32)
    )
