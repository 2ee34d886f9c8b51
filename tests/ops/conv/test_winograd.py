"""The native convolution against PyTorch's in float64."""

import platform

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.conv.native.winograd import convolve, load_kernel, unsupported
from aimamba.ops.conv.winograd import pack


@pytest.fixture(scope="module")
def kernel():
    return needed(load_kernel())


def needed(kernel):
    if kernel is None:
        pytest.skip("no C++ compiler here")
    return kernel


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected(x, weight, bias, *, norm=None, residual=None, doubled=False):
    wide = x.double()
    if norm is not None:
        wide = F.silu(wide * norm[0].double() + norm[1].double())
    image = wide.movedim(-1, 0)[None]
    if doubled:
        image = F.interpolate(image, scale_factor=2.0, mode="nearest")
    output = F.conv2d(image, weight.double(), bias.double(), padding=1)[0].movedim(0, -1)
    return output if residual is None else output + residual.double()


def close(got, wanted):
    assert_close(got.double(), wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (5, 7), (16, 16), (19, 34), (2, 70)])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 32), (48, 3), (144, 96)])
@pytest.mark.parametrize("doubled", [False, True])
def test_equals_conv2d(kernel, height, width, inputs, outputs, doubled):
    x, weight, bias = numbers(height, width, inputs), numbers(outputs, inputs, 3, 3, seed=1), numbers(outputs, seed=2)
    got = convolve(kernel, x, pack(weight, bias, after_doubling=doubled))
    wanted = expected(x, weight, bias, doubled=doubled)
    close(got.output[..., :outputs], wanted)
    assert not got.output[..., outputs:].any()
    flat = got.output.double().flatten(0, 1)
    assert_close(got.moments, torch.stack([flat.sum(0), flat.square().sum(0)]), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("in_place", [False, True])
def test_norm_swish_and_residual_on_the_way(kernel, in_place):
    x, weight, bias = numbers(9, 14, 32), numbers(32, 32, 3, 3, seed=1), numbers(32, seed=2)
    norm, residual = (numbers(32, seed=3), numbers(32, seed=4)), numbers(9, 14, 32, seed=5)
    wanted = expected(x, weight, bias, norm=norm, residual=residual)
    got = convolve(kernel, x, pack(weight, bias), norm=norm, residual=residual, out=residual if in_place else None)
    close(got.output, wanted)
    assert (got.output is residual) == in_place


def test_large_inputs_of_swish(kernel):
    x, weight, bias = 1e3 * numbers(4, 4, 16), numbers(32, 16, 3, 3, seed=1), numbers(32, seed=2)
    norm = torch.ones(16), torch.zeros(16)
    close(convolve(kernel, x, pack(weight, bias), norm=norm).output, expected(x, weight, bias, norm=norm))


def test_the_number_of_threads_does_not_matter(kernel):
    x, packed = numbers(30, 41, 64), pack(numbers(96, 64, 3, 3, seed=1), numbers(96, seed=2))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(convolve(kernel, x, packed))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other.output, results[0].output)
        assert torch.equal(other.moments, results[0].moments)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86")
@pytest.mark.parametrize("flags", [("-march=x86-64-v3",), ("-march=x86-64",)])
def test_older_machines(flags):
    kernel = needed(load_kernel(flags))
    x, weight, bias = numbers(9, 14, 32), numbers(40, 32, 3, 3, seed=1), numbers(40, seed=2)
    norm = numbers(32, seed=3), numbers(32, seed=4)
    got = convolve(kernel, x, pack(weight, bias), norm=norm).output[..., :40]
    close(got, expected(x, weight, bias, norm=norm))


def test_numbers_of_channels_that_are_unsupported():
    assert unsupported(16) is None
    assert unsupported(48) is None
    assert unsupported(8) == "the number of channels must be a multiple of 16, got 8"
    assert "got 24" in unsupported(24)
