"""Which form of the mixer runs, and that models learn the same with each."""

import pytest
import torch
from test_native_sequence import example
from torch.testing import assert_close

from aimamba.models import AiM, AiMConfig
from aimamba.ops.mixer import sequence as plain
from aimamba.ops.mixer.dispatch import mixer_sequence
from aimamba.ops.mixer.native import sequence as native
from aimamba.ops.mixer.native.sequence import load_kernel, unsupported


@pytest.fixture(scope="module")
def kernel():
    if load_kernel() is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture
def forbidden(monkeypatch):
    """The native kernel must not run."""
    monkeypatch.setattr(native, "mixer_sequence", lambda *_, **__: pytest.fail("the native kernel"))


def equals_the_plain_form(projected, weights, state):
    got = mixer_sequence(projected, weights, state_size=state)
    return torch.equal(got, plain.mixer_sequence(projected, weights, state_size=state))


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 513, 1, 32, 32), torch.float32, "it takes at most 512 tokens"),
        ((1, 8, 2, 16, 32), torch.float32, "head width and state size must be multiples of 32"),
        ((1, 8, 2, 32, 16), torch.float32, "head width and state size must be multiples of 32"),
        ((0, 8, 2, 32, 32), torch.float32, "there are no tokens"),
        ((1, 0, 2, 32, 32), torch.float32, "there are no tokens"),
        ((1, 8, 2, 32, 32), torch.float64, "it takes float32 or bfloat16"),
        ((1, 8, 2, 32, 32), torch.float16, "it takes float32 or bfloat16"),
    ],
    ids=str,
)
def test_unsupported_inputs_use_the_plain_form(forbidden, shape, dtype, reason):
    projected, weights = example(*shape, dtype=dtype)
    assert unsupported(projected, weights, shape[-1]) == reason
    if shape[0] and shape[1] and dtype != torch.float16:
        assert equals_the_plain_form(projected, weights, shape[-1])


def test_more_taps_use_the_plain_form(forbidden):
    projected, weights = example(1, 8, 2, 32, 32, taps=5, dtype=torch.float32)
    assert unsupported(projected, weights, 32) == "it takes at most 4 taps"
    assert equals_the_plain_form(projected, weights, 32)


@pytest.mark.parametrize("length", [1, 512])
def test_supported_inputs_use_the_kernel(kernel, length):
    projected, weights = example(1, length, 1, 32, 32, dtype=torch.float32)
    assert unsupported(projected, weights, 32) is None
    got = mixer_sequence(projected, weights, state_size=32)
    assert torch.equal(got, native.mixer_sequence(projected, weights, state_size=32))


def test_without_a_compiler(forbidden, monkeypatch):
    projected, weights = example(1, 8, 2, 32, 32, dtype=torch.float32)
    monkeypatch.setattr(native, "_kernel", lambda: None)
    assert unsupported(projected, weights, 32) == "no C++ compiler built it"
    assert equals_the_plain_form(projected, weights, 32)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_learns_the_same(kernel, monkeypatch, checkpointing):
    config = AiMConfig(
        width=64, num_blocks=2, vocab_size=32, num_tokens=24, num_classes=3, state_size=32, head_width=32
    )
    model = AiM(config)
    codes, labels = torch.randint(32, (2, 23), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3])

    def gradients():
        model.zero_grad()
        model(codes, labels, checkpointing=checkpointing).logsumexp(-1).sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    for parameter in model.parameters():
        if not parameter.any():  # else the blocks are silent and learn nothing
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    got = gradients()
    monkeypatch.setattr(native, "_kernel", lambda: None)
    wanted = gradients()
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-4 * float(wanted[name].abs().max()), msg=name)
