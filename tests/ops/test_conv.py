"""Causal convolution against torch's grouped one, and step by step."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from aimamba.ops.conv import causal_conv, causal_conv_step

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
