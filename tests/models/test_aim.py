"""The generator: sizes, step-by-step decoding against the parallel form, independence of rows, initial weights."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.errors import ConfigError
from aimamba.models import AIM_PRESETS, AiM, AiMConfig
from aimamba.models.adaln import GroupAdaLN, NoAdaLN, make_adaln
from aimamba.models.attention import rotary_2d
from aimamba.ops.mixer import dispatch as mixer_dispatch
from aimamba.ops.mixer.native import sequence as native_mixer
from aimamba.ops.ssd.dispatch import ssd_scan
from decoding import decode
from refusals import one_line_error

VARIANTS = [
    {"mixer": "mamba2", "adaln": "none", "positions": "none"},
    {"mixer": "mamba2", "adaln": "block", "positions": "learned"},
    {"mixer": "mamba2", "adaln": "single", "positions": "learned", "state_size": 40},  # so large that steps are dual
    {"mixer": "mamba2", "adaln": "group", "positions": "none"},
    {"mixer": "attention", "adaln": "none", "positions": "rope"},
    {"mixer": "attention", "adaln": "block", "positions": "rope"},
    {"mixer": "attention", "adaln": "single", "positions": "none"},
    {"mixer": "attention", "adaln": "group", "positions": "learned"},
    {"mixer": "gated-deltanet", "adaln": "none", "positions": "none"},
    {"mixer": "gated-deltanet", "adaln": "group", "positions": "learned", "expand": 1.5},
    {"mixer": "mamba3", "adaln": "none", "positions": "none", "state_size": 10},
    {"mixer": "mamba3", "adaln": "group", "positions": "learned", "expand": 1.5},
    {"mixer": "mamba2", "adaln": "block", "positions": "rope", "hybrid_every": 2},
    {"mixer": "gated-deltanet", "adaln": "none", "positions": "learned", "hybrid_every": 2, "hybrid_mixer": "mamba3"},
]

MIXERS = ("mamba2", "mamba3", "gated-deltanet", "attention")


def named(variant):
    return "-".join(map(str, variant.values()))


def random_codes(model, batch, length, seed=0):
    return torch.randint(model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def decode_codes(model, codes, labels, state=None):
    """Logits of a class and its codes, (B, 1 + codes, V)."""
    return decode(model, torch.cat([labels[:, None], codes], dim=1), state)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("aim-b", 147_622_080), ("aim-l", 349_760_000), ("aim-xl", 763_291_392), ("aim-1b", 1_335_944_192)],
)
def test_presets_have_the_papers_sizes(preset, parameters):
    with torch.device("meta"):
        assert AiM(AIM_PRESETS[preset]).num_parameters() == parameters


@pytest.mark.parametrize(
    ("variant", "length"),
    [(variant, 400 if number in (1, 5, 7) else 70) for number, variant in enumerate(VARIANTS)],
    ids=[named(variant) for variant in VARIANTS],
)
@torch.no_grad()
def test_steps_equal_the_parallel_form_at_every_length(make_aim, variant, length):
    """One pass compares every prefix, for the form is causal; that it is, the shorter passes show."""
    model = make_aim(dtype=torch.float64, num_tokens=length, chunk_size=64, **variant)
    codes, labels = random_codes(model, 2, length - 1), torch.tensor([1, 5])
    steps = decode_codes(model, codes, labels)
    assert steps.shape == (2, length, 24)
    assert_close(steps, model(codes, labels), rtol=1e-10, atol=1e-10)
    for prefix in (0, 1, 2, 3, 62, 63, 64, 65, length // 2, length - 2):
        assert_close(steps[:, : prefix + 1], model(codes[:, :prefix], labels), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mixer", MIXERS)
def test_position_shift_moves_both_forms_alike(make_aim, mixer):
    model = make_aim(dtype=torch.float64, mixer=mixer, decode_position_shift=1)
    codes, labels = random_codes(model, 2, 8), torch.tensor([1, 2])
    with torch.no_grad():
        plain, shifted = model(codes, labels), model(codes, labels, position_shift=1)
    assert (plain - shifted).abs().max() > 1e-3
    assert_close(decode_codes(model, codes, labels), shifted, rtol=1e-10, atol=1e-10)
    assert_close(
        decode_codes(model, codes, labels, model.init_state(2, position_shift=0)), plain, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("position_shift", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
@torch.no_grad()
def test_rows_are_independent(make_aim, variant, position_shift):
    """Rows that joined at different positions, then selected and permuted, decode as they do alone."""
    model = make_aim(dtype=torch.float64, decode_position_shift=position_shift, **variant)
    codes, labels = random_codes(model, 3, 8), torch.tensor([0, 3, 5])
    alone = torch.cat([decode_codes(model, codes[i : i + 1], labels[i : i + 1]) for i in range(3)])

    place = [0, 2, 5]  # tokens each row has taken when they meet
    states = []
    for row, taken in enumerate(place):
        state = model.init_state(1)
        for inputs in (labels[row], *codes[row])[:taken]:
            model.step(inputs[None], state)
        states.append(state)
    joined = states[0].join(states[1:])
    assert joined.position.tolist() == place

    rows = torch.tensor([2, 0, 1])
    state, order = joined.select(rows), rows.tolist()
    for ahead in range(3):
        inputs = torch.stack([torch.cat([labels[row : row + 1], codes[row]])[place[row] + ahead] for row in order])
        logits = model.step(inputs, state)
        for i, row in enumerate(order):
            assert_close(logits[i], alone[row, place[row] + ahead], rtol=1e-10, atol=1e-10)
    assert joined.position.tolist() == place, "select copies: the state it came from must not move"
    assert not torch.equal(state.modulation[0], state.modulation[1]) or variant["adaln"] == "none"

    twice = joined.select(torch.tensor([1, 1]))
    logits = model.step(codes[1, [1, 1]], twice)
    assert_close(logits[0], alone[1, 2], rtol=1e-10, atol=1e-10)
    assert_close(logits[1], alone[1, 2], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_select_leaves_the_cache_of_its_origin_alone(make_aim):
    model = make_aim(mixer="attention", positions="rope")
    state = model.init_state(2)
    model.step(torch.tensor([0, 1]), state)
    before = state.mixers[0]["keys"].clone()
    model.step(torch.tensor([3, 3]), state.select(torch.tensor([0, 1])))
    assert torch.equal(state.mixers[0]["keys"], before)


@torch.no_grad()
def test_without_adaln_the_class_is_the_first_token_alone(make_aim):
    adaln = NoAdaLN(3)
    shift, scale, gate = adaln(torch.randn(2, 8)).unbind(2)
    assert (shift == 0).all()
    assert (scale == 0).all()
    assert (gate == 1).all()
    model = make_aim(adaln="none", dtype=torch.float64)
    states = model.init_state(2)
    model.step(torch.tensor([0, 4]), states)
    assert torch.equal(states.modulation[0], states.modulation[1])
    assert not torch.equal(states.mixers[0]["window"][0], states.mixers[0]["window"][1])


@torch.no_grad()
def test_labels_reach_every_block_with_adaln(make_aim):
    for kind in ("block", "single", "group"):
        model = make_aim(adaln=kind)
        states = model.init_state(2)
        model.step(torch.tensor([0, 4]), states)
        assert (states.modulation[0] != states.modulation[1]).flatten(1).any(dim=1).all(), kind


@torch.no_grad()
def test_groups_are_handed_round_the_blocks():
    width, blocks, groups = 4, 5, 2
    adaln = make_adaln("group", width=width, blocks=blocks, groups=groups)
    assert isinstance(adaln, GroupAdaLN)
    adaln.init_weights(torch.Generator().manual_seed(0))
    condition = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    modulation = adaln(condition)
    assert modulation.shape == (3, blocks, 3, width)
    projected = adaln.projection(torch.nn.functional.silu(condition))  # group after group, each shift, scale, gate
    for block in range(blocks):
        group = projected[:, (block % groups) * 3 * width :][:, : 3 * width].unflatten(1, (3, width))
        assert_close(modulation[:, block], group + adaln.table[block])


@torch.no_grad()
def test_single_is_one_group():
    single = make_adaln("single", width=4, blocks=3, groups=7)
    assert isinstance(single, GroupAdaLN)
    assert single.groups == 1
    single.init_weights(torch.Generator().manual_seed(0))
    modulation = single(torch.randn(2, 4)) - single.table
    assert_close(modulation[:, 0], modulation[:, 2])


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
@torch.no_grad()
def test_initial_weights_come_from_the_generator_alone(variant):
    small = {"width": 16, "num_blocks": 2, "vocab_size": 9, "num_tokens": 4, "num_classes": 2, "head_width": 8}
    first, second = (AiM(AiMConfig(**small, **variant)) for _ in range(2))
    for model in (first, second):
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        model.init_weights(torch.Generator().manual_seed(3))
    for name, parameter in first.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, second.get_parameter(name)), name
    first.init_weights(torch.Generator().manual_seed(4))
    assert not torch.equal(first.word_embedding.weight, second.word_embedding.weight)


@torch.no_grad()
def test_initial_decays_and_step_sizes_lie_in_their_ranges():
    model = AiM(AiMConfig(width=64, num_blocks=4, head_width=4, vocab_size=9, num_tokens=4, num_classes=2))
    for block in model.blocks:
        decay, dt = block.mixer.A_log.exp(), torch.nn.functional.softplus(block.mixer.dt_bias)
        assert decay.min() >= 1
        assert decay.max() <= 16
        assert dt.min() >= 1e-3 * 0.999
        assert dt.max() <= 0.1 * 1.001
        assert dt.max() / dt.min() > 5, "spread over two decades"
    bounds = [block.mixer.out_proj.weight.abs().max() for block in model.blocks]
    assert max(bounds) <= 128**-0.5 / 2, "1 / sqrt(fan in) over sqrt(4 blocks)"


@torch.no_grad()
def test_blocks_begin_silent_under_adaln_zero(make_aim):
    model = make_aim()
    model.init_weights(torch.Generator().manual_seed(0))
    residual = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    modulation = model.adaln(model.condition(torch.tensor([0, 1])))
    mixed = gate = None
    for block, of_block in zip(model.blocks, modulation.unbind(1), strict=True):
        shift, scale, next_gate = of_block.unbind(1)
        new_residual, mixed = block(residual, mixed, gate, shift, scale)
        assert torch.equal(new_residual, residual)
        gate = next_gate
    assert not gate.any()


def test_every_parameter_is_trained(make_aim):
    for variant in VARIANTS:
        model = make_aim(**variant)
        model(random_codes(model, 2, 8), torch.tensor([0, 1])).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (named(variant), name)
            assert parameter.grad.isfinite().all(), (named(variant), name)
            assert parameter.grad.abs().max() > 0, (named(variant), name)


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_bfloat16_keeps_what_is_sensitive_wide(make_aim, mixer):
    model = make_aim(mixer=mixer)
    codes, labels = random_codes(model, 2, 8), torch.tensor([0, 5])
    expected = model(codes, labels)
    model.cast(torch.bfloat16)
    wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert all(name.split(".")[-1] in ("A_log", "D", "dt_bias", "B_bias", "C_bias") or "norm" in name for name in wide)
    assert ("blocks.0.mixer.dt_bias" in wide) == (mixer != "attention")
    assert "norm.weight" in wide
    assert model.word_embedding.weight.dtype == torch.bfloat16
    logits = model(codes, labels)
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
    steps = decode_codes(model, codes, labels)
    assert (steps - expected).abs().max() < 0.03 * expected.abs().max()


@torch.no_grad()
def test_step_sizes_are_computed_in_float32(make_aim, monkeypatch):
    seen = []

    def watched(x, dt, A, *rest, **options):
        seen.append((x.dtype, dt.dtype, A.dtype))
        return ssd_scan(x, dt, A, *rest, **options)

    monkeypatch.setattr(mixer_dispatch, "ssd_scan", watched)
    monkeypatch.setattr(native_mixer, "_kernel", lambda: None)
    model = make_aim(dtype=torch.bfloat16)
    model(random_codes(model, 2, 8), torch.tensor([0, 5]))
    assert set(seen) == {(torch.bfloat16, torch.float32, torch.float32)}


@pytest.mark.parametrize("mixer", MIXERS)
def test_training_under_autocast(make_aim, mixer):
    model = make_aim(mixer=mixer)
    codes, labels = random_codes(model, 2, 8), torch.tensor([0, 5])
    expected = model(codes, labels).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(codes, labels)
    logits.float().square().sum().backward()
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_decoding_under_autocast(make_aim, mixer):
    model = make_aim(mixer=mixer)
    codes, labels = random_codes(model, 2, 8), torch.tensor([0, 5])
    expected = model(codes, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steps = decode_codes(model, codes, labels)
    assert (steps - expected).abs().max() < 0.03 * expected.abs().max()


@torch.no_grad()
def test_rotary_depends_on_relative_places_alone():
    """Products of turned queries and keys are the same when both move by as many rows and columns."""
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def product(row_q, column_q, row_k, column_k):
        places = (1 + 10 * row_q + column_q, 1 + 10 * row_k + column_k)
        turned = [rotary_2d(x, torch.tensor([[at]]), grid_width=10) for x, at in zip((q, k), places, strict=True)]
        return float((turned[0] * turned[1]).sum())

    assert product(2, 3, 1, 1) == pytest.approx(product(6, 7, 5, 5), abs=1e-12)
    assert product(2, 3, 1, 1) != pytest.approx(product(2, 3, 1, 2), abs=1e-6)
    assert product(2, 3, 1, 1) != pytest.approx(product(2, 3, 0, 1), abs=1e-6)
    assert torch.equal(rotary_2d(q, torch.tensor([[0]]), grid_width=10), q), "the class token is not turned"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"width": 0}, "width"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"num_tokens": 0}, "num_tokens"),
        ({"num_classes": 0}, "num_classes"),
        ({"adaln_groups": 0}, "adaln_groups"),
        ({"state_size": 0}, "state_size"),
        ({"head_width": 0}, "head_width"),
        ({"expand": 0}, "expand"),
        ({"expand": 1.3}, "expand times width 768 must be a whole number, got 998.4"),
        ({"expand": 1.5, "width": 96}, "head_width 64 must divide the mixer's inner width 144"),
        ({"hybrid_every": 1}, "hybrid_every must be 0, or from 2 to num_blocks .24., got 1"),
        ({"hybrid_every": 25}, "hybrid_every must be 0, or from 2 to num_blocks .24., got 25"),
        ({"hybrid_every": 2, "hybrid_mixer": "mamba2"}, "a hybrid_mixer that differs from mixer"),
        ({"hybrid_every": 2, "hybrid_mixer": "mamba2", "mixer": "attention"}, "another mixer than 'attention'"),
        ({"hybrid_mixer": "gated-deltanet"}, "hybrid_mixer 'gated-deltanet' has no block; set hybrid_every"),
        ({"hybrid_every": 2, "head_width": 512}, "head_width 512 must divide the mixer's inner width 768"),
        ({"conv_width": 0}, "conv_width"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"width": 100}, "head_width 64 must divide"),
        ({"positions": "rope"}, "rope"),
        ({"positions": "rope", "mixer": "attention", "head_width": 6, "width": 12}, "rope"),
        ({"mixer": "attention", "num_blocks": 3}, "even num_blocks"),
        ({"mixer": "mamba3", "state_size": 3}, "mixer 'mamba3' needs a state_size of at least 4, .* got 3"),
        ({"decode_position_shift": 2}, "decode_position_shift"),
        ({"mixer": "attention", "feed_forward": 0.0}, "feed_forward"),
    ],
)
def test_impossible_shapes_are_refused(settings, named):
    with one_line_error(ConfigError, match=named):
        AiMConfig(**settings)
