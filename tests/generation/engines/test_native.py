"""The native engine: the plain model's logits from a C++ kernel, for every kind of weights and of machine."""

import platform
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from aimamba.errors import CheckpointError, ConfigError
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines import native
from aimamba.generation.engines.native import NativeEngine, unsupported
from aimamba.ops.sampling.logits import guided_sample
from decoding import decode

AVX2 = "-march=x86-64-v3"
STAND_IN = f"-I{Path(__file__).with_name('avx512')}"  # for a header of the compiler
X86 = {
    "AVX2": (AVX2,),
    "SSE2": ("-march=x86-64",),  # as narrow as NEON
    "AVX-512": (AVX2, STAND_IN, "-D__AVX512F__"),
    "AVX512-BF16 and VNNI": (AVX2, STAND_IN, "-D__AVX512F__", "-D__AVX512BF16__", "-D__AVX512VNNI__"),
}
TARGETS = X86 if sys.platform == "linux" and platform.machine() == "x86_64" else {"any": ()}
MACHINES = [pytest.param(flags, id=name) for name, flags in {"this one": None, **TARGETS}.items()]
SHAPES = [
    {"adaln": "single", "num_tokens": 64},  # as many as are cached before there is a state
    {"adaln": "group"},  # the cache is folded into a state at 64 tokens, and twice more
    {"adaln": "block", "width": 48, "state_size": 48, "num_tokens": 9, "conv_width": 3},  # panels that are not full
    {"adaln": "none", "positions": "none", "head_width": 96, "expand": 3, "state_size": 16, "num_tokens": 80},
]
BOUNDS = {"bfloat16": 0.04, "int8": 0.06}  # of logits, as a share of their standard deviation


@pytest.fixture(scope="module")
def make(make_aim):
    """Build a small generator that the kernel takes."""
    if native.load_kernel() is None:
        pytest.skip("no C++ compiler here")
    small = {"width": 32, "num_blocks": 3, "state_size": 32, "head_width": 32, "num_tokens": 140, "vocab_size": 70}
    return lambda **settings: make_aim(**(small | settings))


def decode_codes(engine, codes, labels, state=None):
    """Logits of a class and its codes, (B, 1 + codes, V)."""
    return decode(engine, torch.cat([labels[:, None], codes], dim=1), state)


def random_codes(model, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(model.config.num_classes + 1, (batch,), generator=generator)
    codes = torch.randint(model.config.vocab_size, (batch, model.config.num_tokens - 1), generator=generator)
    return codes, labels


@pytest.mark.parametrize("flags", MACHINES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["adaln"])
def test_float32_equals_the_plain_model(make, shape, flags):
    model = make(decode_position_shift=1, **shape)
    codes, labels = random_codes(model, 3)
    with torch.no_grad():
        expected = model(codes, labels, position_shift=1)
    logits = decode_codes(NativeEngine(model, flags=flags), codes, labels)
    assert logits.dtype == torch.float32
    assert expected.std() > 0.3, "the test's model must not be trivial"
    assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("flags", MACHINES)
@pytest.mark.parametrize("weights", list(BOUNDS))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["adaln"])
def test_narrow_weights_stay_within_their_bound(make, shape, weights, flags):
    """Against float32 and the very weights that are narrowed: bfloat16 ones, whose widening loses nothing."""
    narrow = make(dtype=torch.bfloat16, **shape)
    wide = make(**shape)
    wide.load_state_dict(narrow.state_dict())
    codes, labels = random_codes(narrow, 3)
    with torch.no_grad():
        expected = wide(codes, labels)
    error = decode_codes(NativeEngine(narrow, weights=weights, flags=flags), codes, labels) - expected
    assert error.square().mean().sqrt() < BOUNDS[weights] * expected.std()
    assert error.abs().max() > 1e-4, "narrow weights that lose nothing are not narrow"
    if weights == "bfloat16":
        plain = decode_codes(narrow, codes, labels) - expected
        assert error.square().mean() < plain.square().mean(), "no worse than bfloat16 in PyTorch"


@pytest.mark.parametrize("flags", MACHINES)
@torch.no_grad()
def test_int8_sums_do_not_overflow(make, flags):
    """The largest sums there are: all weights and all inputs of a long product alike."""
    model = make(width=1040, num_blocks=1, adaln="none", positions="none", num_tokens=4)
    model.condition.table.weight.fill_(0.5)
    model.blocks[0].mixer.in_proj.weight.fill_(0.01)
    model.word_embedding.weight.mul_(0.1)
    codes, labels = random_codes(model, 3)
    expected = model(codes, labels)[:, 0]
    engine = NativeEngine(model, weights="int8", flags=flags)
    error = engine.step(labels, engine.init_state(3)) - expected
    assert error.square().mean().sqrt() < BOUNDS["int8"] * expected.std()


@pytest.mark.parametrize("flags", MACHINES)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_every_batch_and_number_of_threads_gives_the_same_bits(make, weights, flags):
    model = make(num_tokens=70)
    codes, labels = random_codes(model, 21)
    whole = decode_codes(NativeEngine(model, weights=weights, threads=1, flags=flags), codes, labels)
    for threads in (1, 2, 5):
        engine = NativeEngine(model, weights=weights, threads=threads, flags=flags)
        for start, stop in ((0, 1), (1, 3), (3, 10), (10, 21)):
            assert torch.equal(decode_codes(engine, codes[start:stop], labels[start:stop]), whole[start:stop]), threads


@pytest.mark.parametrize("places", [[0, 2, 5], [0, 63, 64], [66, 95, 97]])
@torch.no_grad()
def test_rows_are_independent(make, places):
    """Rows that joined at different positions, before and after their caches are folded, decode as they do alone."""
    engine = NativeEngine(make())
    codes, labels = random_codes(engine.model, 3)
    alone = decode_codes(engine, codes, labels)
    inputs = torch.cat([labels[:, None], codes], dim=1)
    states = []
    for row, taken in enumerate(places):
        state = engine.init_state(1)
        for t in range(taken):
            engine.step(inputs[row, t : t + 1], state)
        states.append(state)
    order = [2, 0, 1]
    state = states[0].join(states[1:]).select(torch.tensor(order))
    for ahead in range(5):
        logits = engine.step(torch.stack([inputs[row, places[row] + ahead] for row in order]), state)
        for i, row in enumerate(order):
            assert torch.equal(logits[i], alone[row, places[row] + ahead]), (row, ahead)


def test_strong_decays_and_large_steps_stay_finite(make):
    model = make()
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.dt_bias.add_(30.0)
            block.mixer.A_log.add_(3.0)
            block.mixer.in_proj.weight.mul_(20.0)
    codes, labels = random_codes(model, 2)
    with torch.no_grad():
        expected = model(codes, labels)
    assert_close(decode_codes(NativeEngine(model), codes, labels), expected, rtol=1e-3, atol=1e-3)


def test_an_engine_keeps_the_weights_it_was_made_from(make):
    model = make()
    codes, labels = random_codes(model, 1)
    engine = NativeEngine(model)
    before = decode_codes(engine, codes[:, :4], labels)
    with torch.no_grad():
        model.blocks[0].mixer.in_proj.weight.mul_(2.0)
    assert torch.equal(decode_codes(engine, codes[:, :4], labels), before)
    assert not torch.equal(decode_codes(NativeEngine(model), codes[:, :4], labels), before)


@pytest.mark.parametrize("temperature", [1.0, 0.0, torch.tensor([0.5, 0.0, 1.0, 2.0, 1.0])], ids=["1", "0", "rows"])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.6},
        {"top_k": torch.tensor([0, 5, 1, 0, 70])},
        {"min_p": 0.2},
        {"min_p": torch.tensor([0.0, 0.1, 0.9, 0.01, 0.3]), "top_p": torch.tensor([1.0, 0.5, 1.0, 1.0, 0.9])},
    ],
    ids=str,
)
def test_samples_equal_those_of_pytorch(make, filters, temperature):
    """Also of codes that cannot be told from one another by their place, and at both ends of the uniform numbers."""
    engine = NativeEngine(make())
    generator = torch.Generator().manual_seed(2)
    unconditional_rows, scale = torch.tensor([5, 1, 6, 3, 7]), torch.tensor([2.0, 1.0, 0.0, 1.0, 4.0])
    for _ in range(40):
        logits = 3 * torch.randn(8, 70, generator=generator)
        uniform = torch.rand(5, dtype=torch.float64, generator=generator)
        uniform[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
        options = {"unconditional_rows": unconditional_rows, "scale": scale, "temperature": temperature, **filters}
        assert torch.equal(engine.guided_sample(logits, uniform, **options), guided_sample(logits, uniform, **options))
    assert torch.equal(engine.guided_sample(logits, uniform), guided_sample(logits, uniform))


def test_generated_codes_equal_those_of_the_plain_model(make):
    model = make()
    labels = torch.tensor([0, 1, 2, 3])
    config = SamplingConfig(cfg_scale=2.0, top_k=20)
    *_, plain = generate(model, labels, config, engine="plain")
    *_, native = generate(model, labels, config, engine="native")
    assert torch.equal(native, plain)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mixer": "attention", "num_blocks": 2}, "it decodes the mixer mamba2, not attention"),
        ({"hybrid_every": 2}, "it decodes the mixer mamba2, not attention"),
        ({"width": 24, "head_width": 16}, "multiples of 16"),
        ({"dtype": torch.float64}, "the model is in float64"),
    ],
)
def test_models_it_cannot_decode(make, settings, reason):
    model = make(**settings)
    assert reason in unsupported(model)
    with pytest.raises(ConfigError, match=r"the native engine cannot decode this model: .*choose the engine 'plain'"):
        NativeEngine(model)
    *_, codes = generate(model, torch.tensor([1]), engine="auto")  # falls back
    assert codes.shape == (1, model.config.num_tokens)


def test_too_many_tokens(make):
    model = make(num_tokens=4)
    engine = NativeEngine(model)
    state = engine.init_state(1)
    for _ in range(4):
        engine.step(torch.tensor([1]), state)
    with pytest.raises(AssertionError, match="all tokens"):
        engine.step(torch.tensor([1]), state)


def test_without_a_compiler_the_plain_model_is_used(make_aim, monkeypatch):
    monkeypatch.setattr(native, "load_library", lambda *_: None)
    model = make_aim(width=16, state_size=16, head_width=16)
    *_, codes = generate(model, torch.tensor([1]))
    assert codes.shape == (1, 9)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler built it"):
        next(generate(model, torch.tensor([1]), engine="native"))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "name",
    ["blocks.1.mixer.in_proj.weight", "word_embedding.weight", "condition.table.weight", "position_embedding.weight"],
)
def test_damaged_weights_are_refused(make, name, weights):
    """An integer of 8 bits cannot be NaN: neither weights nor inputs of a product would show it."""
    model = make()
    with torch.no_grad():
        model.get_parameter(name)[0] = torch.nan
    with pytest.raises(CheckpointError, match="weights contain NaN or infinity"):
        NativeEngine(model, weights=weights)
