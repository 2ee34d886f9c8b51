"""The Triton kernels of a mixer's decoding step against the plain functions, token by token."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.mixer import step as plain
from aimamba.ops.mixer.weights import MixerWeights
from tests.ops import small_mixer
from tests.ops.small_mixer import CHANNELS, CLOSE, HEADS, INNER, ROWS, STATES, TAPS, WIDTH, make_weights

kernels = pytest.importorskip("aimamba.ops.mixer.triton.step", reason="Triton is not installed")

TOKENS = 7  # the ring of three taps comes round twice


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_memory(form, dtype, device, x_dtype=None):
    """Return memory full of NaN: slots that were not written must not be read."""
    shapes = {"window": (dtype, (ROWS, TAPS, CHANNELS))}
    if form == "state":
        shapes["ssm"] = torch.float32, (ROWS, HEADS, WIDTH, STATES)
    else:
        shapes["B"] = dtype, (ROWS, TOKENS, STATES)
        shapes["x"] = x_dtype or dtype, (ROWS, HEADS, TOKENS, WIDTH)
        shapes["weights"] = torch.float32, (ROWS, HEADS, TOKENS)
    return [
        torch.full(shape, torch.nan if each.is_floating_point else 99, dtype=each, device=device)
        for each, shape in shapes.values()
    ]


def run(step, form, weights, dtype, device, x_dtype=None, **options):
    """Return the outputs of all tokens and the memory."""
    memory = make_memory(form, dtype, device, x_dtype)
    return small_mixer.run(step, memory, weights, dtype, device, tokens=TOKENS, **options), memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 2])
def test_state_form(device, dtype, heads):
    weights = make_weights(dtype, device)
    expected = run(plain.state_mixer_step, "state", weights, dtype, device)
    launch = kernels.Launch(heads=heads, tokens=1, warps=4, stages=1)
    fused = run(kernels.state_mixer_step, "state", weights, dtype, device, launch=launch)
    assert_close(fused, expected, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "tokens"), [(1, 4), (8, 2)])
def test_dual_form(device, dtype, heads, tokens):
    weights = make_weights(dtype, device)
    expected = run(plain.dual_mixer_step, "dual", weights, dtype, device)
    launch = kernels.Launch(heads=heads, tokens=tokens, warps=4, stages=2)
    fused = run(kernels.dual_mixer_step, "dual", weights, dtype, device, launch=launch)
    assert_close(fused, expected, equal_nan=True, **CLOSE[dtype])


@pytest.mark.parametrize(("heads", "tokens", "stages"), [(1, 4, 1), (8, 2, 2)])
def test_dual_form_with_x_in_8_bits(device, heads, tokens, stages):
    """Both store the same numbers, so the results differ by rounding only; the exact form is within the bound."""
    weights = make_weights(torch.float32, device)
    expected, memory = run(plain.dual_mixer_step, "dual", weights, torch.float32, device, torch.int8)
    launch = kernels.Launch(heads=heads, tokens=tokens, warps=4, stages=stages)
    fused, other = run(kernels.dual_mixer_step, "dual", weights, torch.float32, device, torch.int8, launch=launch)
    assert_close(fused, expected, **CLOSE[torch.float32])
    assert memory[2].dtype == torch.int8
    assert (memory[2].int() - other[2].int()).abs().max() <= 1, "a number may lie between two levels"
    assert_close(other[3], memory[3], equal_nan=True, **CLOSE[torch.float32])
    exact, _ = run(plain.dual_mixer_step, "dual", weights, torch.float32, device)
    assert 0 < (expected - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes with NumPy
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("step", [plain.dual_mixer_step, kernels.dual_mixer_step])
def test_what_is_not_finite_stays_so_in_8_bits(device, step, broken):
    weights = make_weights(torch.float32, device)
    memory = make_memory("dual", torch.float32, device, torch.int8)
    projected = torch.ones(ROWS, INNER + CHANNELS + HEADS, device=device)
    projected[0, INNER] = broken
    for token in range(5):  # by then the number has left the window of the convolution
        position = torch.full((ROWS,), token, device=device)
        gated, _ = step(projected, weights, *memory, position)
        projected = torch.ones_like(projected)
    assert not bool(gated[0].isfinite().all())
    assert bool(gated[1].isfinite().all())


@pytest.mark.parametrize("decay", [-8.0, 1.0, 4.0])
def test_both_forms_compute_the_same(device, decay):
    weights = make_weights(torch.float32, device, decay=decay)
    launch = kernels.Launch(heads=2, tokens=16, warps=4, stages=1)
    state, _ = run(kernels.state_mixer_step, "state", weights, torch.float32, device, launch=launch)
    dual, _ = run(kernels.dual_mixer_step, "dual", weights, torch.float32, device, launch=launch)
    assert_close(dual, state, rtol=1e-4, atol=1e-5)


def test_launches_follow_the_number_of_rows_and_heads(device):
    """A group that does not divide the heads is cut down, and more rows use other programs for the same result."""
    weights = make_weights(torch.float32, device)
    generator = torch.Generator().manual_seed(2)
    rows = min(kernels.DUAL) + 1
    projected = torch.randn(rows, INNER + CHANNELS + HEADS, generator=generator).to(device)
    memory = [tensor.new_zeros(rows, *tensor.shape[1:]) for tensor in make_memory("dual", torch.float32, device)]
    position = torch.zeros(rows, dtype=torch.long, device=device)
    gated, squares = kernels.dual_mixer_step(projected, weights, *memory, position)
    alone = kernels.dual_mixer_step(projected[:1], weights, *[each[:1] for each in memory], position[:1])
    assert squares.shape == (rows, 1)
    assert alone[1].shape == (1, HEADS)
    assert_close(gated[:1], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("launch", kernels.DUAL.values(), ids=lambda launch: f"{launch.heads} heads")
@pytest.mark.parametrize("decay", [-2.0, 3.0])
def test_the_published_shape_with_a_full_cache(device, launch, decay):
    """Heads of 64, states of 128, a late and an early row; heads that forget within a block, and slow ones."""
    heads, width, states, capacity, rows = 8, 64, 128, 257, 2
    inner, channels = heads * width, heads * width + 2 * states
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device)

    weights = MixerWeights(
        normal(channels, 4), normal(channels), normal(heads) - 3, normal(heads) + decay, normal(heads), normal(inner)
    )
    position = torch.tensor([200, 1], device=device)
    memory = [normal(rows, 4, channels), normal(rows, capacity, states), normal(rows, heads, capacity, width)]
    memory.append(torch.nn.functional.softplus(normal(rows, heads, capacity) - 3))
    for row, taken in enumerate(position.tolist()):
        memory[1][row, taken:] = memory[2][row, :, taken:] = memory[3][row, :, taken:] = torch.nan
    projected = normal(rows, inner + channels + heads)
    other = [tensor.clone() for tensor in memory]
    expected, squares = plain.dual_mixer_step(projected, weights, *memory, position)
    gated, parts = kernels.dual_mixer_step(projected, weights, *other, position, launch=launch)
    assert_close(gated, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert_close(parts.sum(dim=-1, keepdim=True), squares, rtol=1e-4, atol=0.0)
    assert_close(other, memory, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [2, 8, 32, 128])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.int8])
def test_many_programs_give_the_same_bits_in_every_run(rows, x_dtype):
    """Warps of a program share the tokens' weights, which change while it runs."""
    heads, width, states, capacity = 48, 64, 128, 256
    channels = heads * width + 2 * states
    generator = torch.Generator("cuda").manual_seed(3)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    narrow = (normal(channels, 4), normal(channels))
    weights = MixerWeights(
        *(each.bfloat16() for each in narrow), normal(heads) - 3, normal(heads), normal(heads), normal(heads * width)
    )
    x = normal(rows, heads, capacity, width)
    x = x.bfloat16() if x_dtype == torch.bfloat16 else (40 * x).clamp(-127, 127).to(x_dtype)
    B, window = normal(rows, capacity, states).bfloat16(), normal(rows, 4, channels).bfloat16()
    memory = [window, B, x, normal(rows, heads, capacity).abs()]
    projected = normal(rows, heads * width + channels + heads).bfloat16()
    position, runs = torch.full((rows,), capacity - 1, device="cuda"), []
    for _ in range(50):
        used = [tensor.clone() for tensor in memory]
        runs.append([*kernels.dual_mixer_step(projected, weights, *used, position), *used])
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(run, runs[0], strict=True))
