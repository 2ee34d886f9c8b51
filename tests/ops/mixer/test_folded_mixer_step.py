"""Fold and replay against the state form, and its Triton kernel against the plain function, token by token."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.mixer import step as plain
from aimamba.ops.mixer.weights import MixerWeights
from tests.ops import small_mixer
from tests.ops.small_mixer import CHANNELS, CLOSE, HEADS, ROWS, STATES, TAPS, WIDTH, make_weights

LENGTH, FIRST = 13, 5  # the rows fold at different steps


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def kernel():
    folded = pytest.importorskip("aimamba.ops.mixer.triton.folded", reason="Triton is not installed")
    return folded.folded_mixer_step


def make_memory(dtype, device, *, x_dtype=None, wide=torch.float32):
    """Return memory full of NaN: what was not written must not be read."""
    shapes = [
        ((ROWS, TAPS, CHANNELS), dtype),
        ((ROWS, FIRST, STATES), dtype),
        ((ROWS, HEADS, FIRST, WIDTH), x_dtype or dtype),
        ((ROWS, HEADS, FIRST), wide),
        ((ROWS, HEADS, WIDTH, STATES), wide),
        ((ROWS, HEADS), wide),
    ]
    made = [torch.empty(shape, dtype=each, device=device) for shape, each in shapes]
    return [tensor.fill_(torch.nan if tensor.is_floating_point() else 99) for tensor in made]


run = partial(small_mixer.run, tokens=LENGTH)


def run_state(dtype, device, weights, wide=torch.float32):
    memory = make_memory(dtype, device, wide=wide)
    return run(plain.state_mixer_step, [memory[0], memory[4]], weights, dtype, device)


@pytest.mark.parametrize("decay", [-6.0, 0.0, 3.0])
@pytest.mark.parametrize("every", [1, 3, FIRST])
def test_equals_the_state_form(device, every, decay):
    """Three folds of one row and two of the other with 3 tokens, none of which end with the last token."""
    weights = make_weights(torch.float64, device, wide=torch.float64, decay=decay)
    memory = make_memory(torch.float64, device, wide=torch.float64)
    found = run(plain.folded_mixer_step, memory, weights, torch.float64, device, every=every)
    expected = run_state(torch.float64, device, weights, torch.float64)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("every", "heads", "tokens"), [(1, 1, 4), (3, 2, 2), (FIRST, 1, 8)])
def test_the_kernel_computes_the_same(device, kernel, every, heads, tokens, dtype):
    from aimamba.ops.mixer.triton.step import Launch

    weights, memory, other = make_weights(dtype, device), make_memory(dtype, device), make_memory(dtype, device)
    expected = run(plain.folded_mixer_step, memory, weights, dtype, device, every=every)
    launch = Launch(heads=heads, tokens=tokens, warps=4, stages=1)
    found = run(kernel, other, weights, dtype, device, every=every, launch=launch)
    assert_close(found, expected, **CLOSE[dtype])
    assert_close(other[4:], memory[4:], **CLOSE[dtype])
    state = run_state(dtype, device, weights)
    assert (found - state).abs().max() < (1e-4 if dtype == torch.float32 else 0.05) * state.abs().max()


def test_the_kernel_with_x_in_8_bits(device, kernel):
    weights = make_weights(torch.float32, device)
    memory, other = (make_memory(torch.float32, device, x_dtype=torch.int8) for _ in range(2))
    expected = run(plain.folded_mixer_step, memory, weights, torch.float32, device, every=3)
    found = run(kernel, other, weights, torch.float32, device, every=3)
    assert_close(found, expected, **CLOSE[torch.float32])
    state = run_state(torch.float32, device, weights)
    assert 1e-5 < (found - state).abs().max() / state.abs().max() < 0.02


class Published:
    """Heads of 64 and states of 128: 16 tokens are cached before the first fold, and 8 before each other."""

    def __init__(self, rows, heads, dtype, device):
        self.generator, self.device, self.dtype = torch.Generator().manual_seed(3), device, dtype
        self.rows, self.heads, self.channels = rows, heads, heads * 64 + 2 * 128
        self.weights = MixerWeights(
            self.normal(self.channels, 4, dtype=dtype), self.normal(self.channels, dtype=dtype),
            self.normal(heads) - 3, self.normal(heads), self.normal(heads), self.normal(heads * 64),
        )  # fmt: skip

    def normal(self, *shape, dtype=torch.float32):
        return torch.randn(shape, generator=self.generator).to(self.device, dtype)

    def memory(self):
        shapes = (4, self.channels), (16, 128), (self.heads, 16, 64)
        tokens = [self.normal(self.rows, *shape, dtype=self.dtype) for shape in shapes]
        weights, carry = self.normal(self.rows, self.heads, 16).abs(), self.normal(self.rows, self.heads).abs()
        return [*tokens, weights, self.normal(self.rows, self.heads, 64, 128), carry]

    def step(self, step, memory, projected, position):
        given = torch.full((self.rows,), position, device=self.device)
        return step(projected, self.weights, *memory, given, every=8)

    def projected(self):
        return self.normal(self.rows, self.heads * 64 + self.channels + self.heads, dtype=self.dtype)


def test_one_row_and_the_published_shape(device, kernel):
    """At the fold and on both sides of it."""
    published = Published(1, 2, torch.float32, device)
    for position in (15, 16, 22, 23):
        memory, projected = published.memory(), published.projected()
        other = [tensor.clone() for tensor in memory]
        expected, squares = published.step(plain.folded_mixer_step, memory, projected, position)
        gated, parts = published.step(kernel, other, projected, position)
        assert_close(gated, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert_close(parts.sum(dim=-1, keepdim=True), squares, rtol=1e-4, atol=0.0)
        assert_close(other[4], memory[4], rtol=1e-4, atol=1e-4 * float(memory[4].abs().max()))
        assert bool((other[5] == 1).all()) == (position in (15, 23))


@pytest.mark.gpu
@pytest.mark.parametrize("position", [14, 15, 22, 23])
def test_many_programs_give_the_same_bits_in_every_run(kernel, position):
    """Warps of a program share the tokens' weights, which change while it runs."""
    published = Published(128, 48, torch.bfloat16, torch.device("cuda"))
    memory, projected = published.memory(), published.projected()
    runs = []
    for _ in range(50):
        used = [tensor.clone() for tensor in memory]
        runs.append([*published.step(kernel, used, projected, position), *used])
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(run, runs[0], strict=True))
