"""Causal convolution against torch's grouped one, and step by step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from aimamba.ops.conv.causal import causal_conv, causal_conv_silu, causal_conv_step

sizes = st.fixed_dictionaries(
    {"batch": st.integers(1, 3), "length": st.integers(1, 12), "channels": st.integers(1, 5), "taps": st.integers(1, 6)}
)


def make(batch, length, channels, taps):
    generator = torch.Generator().manual_seed(batch + 10 * length + 1000 * channels + 10000 * taps)
    shapes = ((batch, length, channels), (channels, taps), (channels,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@given(sizes)
def test_equals_the_grouped_convolution_of_torch(size):
    x, weight, bias = make(**size)
    channels, taps = weight.shape
    oracle = torch.nn.functional.conv1d(x.mT, weight[:, None], bias, padding=taps - 1, groups=channels)
    assert_close(causal_conv(x, weight, bias), oracle[..., : x.shape[1]].mT, rtol=1e-12, atol=1e-12)


@given(sizes)
def test_steps_equal_the_whole(size):
    x, weight, bias = make(**size)
    batch, length, channels = x.shape
    window = x.new_zeros(batch, weight.shape[1] - 1, channels)
    outputs = []
    for t in range(length):
        y, window = causal_conv_step(x[:, t], weight, bias, window)
        outputs.append(y)
    assert window.shape == (batch, weight.shape[1] - 1, channels)
    assert_close(torch.stack(outputs, dim=1), causal_conv(x, weight, bias), rtol=1e-12, atol=1e-12)


def test_gradients():
    inputs = [tensor.requires_grad_() for tensor in make(2, 4, 3, 3)]
    assert torch.autograd.gradcheck(causal_conv, inputs)


def test_output_depends_on_no_later_token():
    x, weight, bias = make(1, 8, 3, 4)
    changed = x.clone()
    changed[:, 5:] += 1
    assert torch.equal(causal_conv(x, weight, bias)[:, :5], causal_conv(changed, weight, bias)[:, :5])
    assert not torch.equal(causal_conv(x, weight, bias)[:, 5], causal_conv(changed, weight, bias)[:, 5])


def with_silu(x, weight, bias):
    return torch.nn.functional.silu(causal_conv(x, weight, bias))


@given(sizes, st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]))
def test_with_silu_equals_the_plain_one_and_its_gradients(size, precision):
    dtype, near = precision
    x, weight, bias = make(**size)
    got, expected = [], []
    for form, dtypes, results in ((with_silu, (torch.float64,) * 2, expected), (causal_conv_silu, precision, got)):
        wide = torch.promote_types(dtypes[0], torch.float32)
        leaves = [
            t.detach().clone().to(wanted).requires_grad_()
            for t, wanted in ((x, dtypes[0]), (weight, wide), (bias, wide))
        ]
        y = form(*leaves)
        y.backward(torch.ones_like(y))
        results += [y.detach(), *(leaf.grad for leaf in leaves)]
    assert got[0].dtype == got[1].dtype == dtype
    assert got[2].dtype == torch.promote_types(dtype, torch.float32)
    for ours, oracle in zip(got, expected, strict=True):
        assert (ours.double() - oracle).abs().max() <= near * max(1.0, float(oracle.abs().max()))


def test_with_silu_where_onednn_is_absent(monkeypatch):
    x, weight, bias = (tensor.float() for tensor in make(2, 9, 4, 3))
    expected = with_silu(x, weight, bias)
    assert_close(causal_conv_silu(x, weight, bias), expected)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *_, **__: pytest.fail("a grouped convolution"))
    assert_close(causal_conv_silu(x, weight, bias), expected)


def test_gradients_with_silu():
    inputs = [tensor.requires_grad_() for tensor in make(2, 4, 3, 3)]
    assert torch.autograd.gradcheck(causal_conv_silu, inputs)
    few = [tensor.requires_grad_() for tensor in make(1, 2, 3, 5)]
    assert torch.autograd.gradcheck(causal_conv_silu, few)


def test_with_silu_of_a_slice():
    """The model passes some columns of a wider projection."""
    x, weight, bias = (tensor.float() for tensor in make(2, 9, 4, 3))
    wider = torch.cat([x, x + 1, x], dim=-1)
    assert_close(causal_conv_silu(wider[..., 4:8], weight, bias), with_silu(x + 1, weight, bias))
