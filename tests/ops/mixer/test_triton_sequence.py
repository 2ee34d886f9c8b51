"""The Triton kernels of the mixer against the plain form: outputs and every gradient."""

import pytest
import torch

from aimamba.ops.mixer import dispatch
from aimamba.ops.mixer import sequence as plain
from aimamba.ops.mixer.weights import MixerWeights

fused = pytest.importorskip("aimamba.ops.mixer.triton.sequence", reason="Triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ("output", "projected", *MixerWeights._fields)


def make(batch, length, heads, width, states, *, taps=4, dtype=torch.float32, rate=1.0, step=-3.0):
    """Return the projection's output in ``dtype`` and weights in float32; the decay rates are up to e^rate."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    inner, channels = heads * width, heads * width + 2 * states
    projected = normal(batch, length, inner + channels + heads)
    weights = 0.5 * normal(channels, taps), 0.1 * normal(channels), normal(heads) + step
    weights += rate * torch.rand(heads, generator=generator), normal(heads), 1 + 0.1 * normal(inner)
    return projected.to(DEVICE, dtype), MixerWeights(*(weight.to(DEVICE) for weight in weights))


def outcome(form, projected, weights):
    """Return the output and the gradients of everything, in float64."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (projected, *weights)]
    out = form(leaves[0], MixerWeights(*leaves[1:]))
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, projected.dtype)
    gradients = torch.autograd.grad(out, leaves, slope.to(out.dtype))
    return dict(zip(NAMES, (each.detach().double() for each in (out, *gradients)), strict=True))


def results(form, projected, weights):
    """Return what ``outcome`` does, with the gradient of the projection in its parts."""
    inner, heads = len(weights.norm_weight), len(weights.A_log)
    states = (len(weights.conv_bias) - inner) // 2
    sizes = {"z": inner, "x": inner, "B": states, "C": states, "dt": heads}
    found = outcome(lambda *inputs: form(*inputs, state_size=states), projected, weights)
    return found | dict(zip(sizes, found.pop("projected").split(list(sizes.values()), dim=-1), strict=True))


def exact(projected, weights):
    return results(plain.mixer_sequence, projected.double(), MixerWeights(*(weight.double() for weight in weights)))


def assert_near(projected, weights, bound):
    """Compare with the plain form in float64 within ``bound`` times the largest number of each part."""
    found = results(fused.mixer_sequence, projected, weights)
    for name, wanted in exact(projected, weights).items():
        assert (found[name] - wanted).abs().max() <= bound * wanted.abs().max(), name


@pytest.mark.parametrize(
    ("length", "heads", "width", "states", "taps"),
    [
        (1, 2, 16, 16, 4),
        (32, 2, 16, 16, 4),
        (70, 3, 16, 32, 4),
        (130, 2, 16, 16, 4),
        (40, 2, 8, 20, 3),
        (5, 7, 16, 16, 2),
        (3, 1, 16, 16, 1),
    ],
)
def test_float32(length, heads, width, states, taps):
    assert_near(*make(2, length, heads, width, states, taps=taps), 2e-5)


@pytest.mark.parametrize("length", [3, 130])
def test_bfloat16_is_about_as_exact_as_the_plain_form(length):
    """The interpreter truncates bfloat16 where a device rounds: errors on a device are about half as large."""
    inputs = make(1, length, 2, 32, 64, dtype=torch.bfloat16)
    found, other = results(fused.mixer_sequence, *inputs), results(plain.mixer_sequence, *inputs)
    for name, wanted in exact(*inputs).items():
        error, usual = ((each[name] - wanted).abs().max() for each in (found, other))
        assert error <= max(2 * usual, 0.03 * wanted.abs().max()), name


@pytest.mark.parametrize("step", [-12.0, 3.0])
def test_heads_that_forget_nothing_and_heads_that_forget_at_once(step):
    assert_near(*make(1, 70, 3, 16, 16, rate=5.0, step=step), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_laid_out_as_their_weights(dtype):
    """Otherwise autograd would copy them."""
    projected, weights = make(1, 40, 2, 16, 16, dtype=dtype)
    gradients = outcome(lambda *inputs: fused.mixer_sequence(*inputs, state_size=16), projected, weights)
    for name, weight in weights._asdict().items():
        assert gradients[name].stride() == weight.stride(), name


def test_the_same_bits_in_every_run():
    projected, weights = make(1, 40, 2, 16, 16)
    runs = [outcome(lambda *inputs: fused.mixer_sequence(*inputs, state_size=16), projected, weights) for _ in range(2)]
    for name in NAMES:
        assert torch.equal(runs[0][name], runs[1][name]), name


def test_rows_do_not_depend_on_each_other():
    projected, weights = make(3, 40, 2, 16, 16)
    whole = fused.mixer_sequence(projected, weights, state_size=16)
    assert torch.equal(whole[1:2], fused.mixer_sequence(projected[1:2], weights, state_size=16))


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((1, 1025, 1, 16, 16), {}, "they take at most 1024 tokens"),
        ((0, 8, 2, 16, 16), {}, "there are no tokens"),
        ((1, 0, 2, 16, 16), {}, "there are no tokens"),
        ((1, 8, 1, 256, 16), {}, "they take heads of at most 128 features with at most 256 states"),
        ((1, 8, 1, 16, 512), {}, "they take heads of at most 128 features with at most 256 states"),
        ((1, 8, 2, 16, 16), {"taps": 5}, "they take at most 4 taps"),
        ((1, 8, 2, 16, 16), {"dtype": torch.float16}, "they take float32 or bfloat16"),
        ((1, 8, 2, 16, 16), {}, None),
    ],
    ids=str,
)
def test_unsupported(shape, options, reason):
    assert fused.unsupported(*make(*shape, **options), shape[-1]) == reason


def test_the_operators_that_the_compiler_sees():
    projected, weights = make(1, 20, 1, 16, 16)
    leaves = [tensor.requires_grad_() for tensor in (projected, *weights)]
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(torch.ops.aimamba.mixer_sequence_triton, (leaves[0], leaves[1:]), test_utils=checks)
    found = outcome(lambda x, w: torch.ops.aimamba.mixer_sequence_triton(x, list(w))[0], projected, weights)
    expected = outcome(lambda x, w: fused.mixer_sequence(x, w, state_size=16), projected, weights)
    for name in NAMES:
        assert torch.equal(found[name], expected[name]), name


def test_the_trial_finds_kernels_with_wrong_results(monkeypatch):
    shape = DEVICE, 2, 32, 16, 4
    assert dispatch._try(*shape) is None
    right = fused.mixer_sequence
    monkeypatch.setattr(fused, "mixer_sequence", lambda *inputs, **sizes: 1.2 * right(*inputs, **sizes))
    assert dispatch._try(*shape).startswith("output or its gradient is off by 0.2 of its largest number")
    monkeypatch.setattr(fused, "mixer_sequence", lambda *_, **__: 1 / 0)
    assert dispatch._try(*shape) == "ZeroDivisionError: division by zero"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_which_form_runs_on_a_device(monkeypatch):
    projected, weights = make(2, 40, 2, 64, 128, dtype=torch.bfloat16)
    ran = []
    right = fused.mixer_sequence
    monkeypatch.setattr(fused, "mixer_sequence", lambda *inputs, **sizes: ran.append(1) or right(*inputs, **sizes))
    dispatch.mixer_sequence(projected, weights, state_size=128)
    assert ran
    ran.clear()
    dispatch.mixer_sequence(projected.float(), weights, state_size=128)
    monkeypatch.setenv("AIMAMBA_SCAN", "plain")
    dispatch.mixer_sequence(projected, weights, state_size=128)
    assert not ran
