"""Recorded steps: states take turns in one memory, are resumed, selected and joined, and equal the model's own."""

import gc
import importlib.util

import pytest
import torch
from torch.testing import assert_close

from aimamba.errors import DataError
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines import recorded_step
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.generation.engines.recorded_step import RecordedStep, triton_operators
from decoding import Recorder, decode
from waiting import counted_waits

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make_engine(model, **options):
    recorder = Recorder()
    return RecordedEngine(RecordedStep(model, form=options.pop("form", None)), recorder, **options), recorder


def tokens(rows, length=9, seed=0):
    return torch.randint(5, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["mamba2", "attention"])
def model(request, make_aim):
    return make_aim(mixer=request.param, dtype=torch.float64)


def test_equals_the_model_and_records_once(model):
    engine, recorder = make_engine(model)
    for seed in range(3):
        inputs = tokens(2, seed=seed)
        assert_close(decode(engine, inputs), decode(model, inputs), **EXACT)
    assert recorder.recorded == 1
    assert recorder.replayed == 27


def test_logits_are_the_callers(model):
    engine, _ = make_engine(model)
    state = engine.init_state(2)
    first = engine.step(torch.tensor([0, 1]), state)
    kept = first.clone()
    engine.step(torch.tensor([3, 4]), state)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("shift", [0, 1])
def test_states_of_as_many_rows_take_turns(model, shift):
    engine, recorder = make_engine(model)
    inputs = [tokens(2, seed=1), tokens(2, seed=2)]
    states = [engine.init_state(2), engine.init_state(2, position_shift=shift)]
    given = [[], []]
    for position in range(9):
        for turn in (0, 1) if position % 2 else (1, 0):
            given[turn].append(engine.step(inputs[turn][:, position], states[turn]))
    for turn in (0, 1):
        expected = decode(model, inputs[turn], model.init_state(2, position_shift=shift * turn))
        assert_close(torch.stack(given[turn], dim=1), expected, **EXACT)
        assert states[turn].position.tolist() == [9, 9]
    assert recorder.recorded == 1


def test_a_state_that_nobody_has_any_more_is_not_copied_out(model, monkeypatch):
    engine, _ = make_engine(model)
    state = engine.init_state(2)
    engine.step(torch.tensor([0, 1]), state)
    del state
    gc.collect()
    for name in ("clone", "copy_"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("copied"))
    engine._load(engine.init_state(2))


def test_other_numbers_of_rows_have_their_own_recordings(model):
    engine, recorder = make_engine(model, kept=2)
    for rows in (1, 2, 1, 3, 3, 1, 2):  # 3 takes the place of 2, the last used before 1; then 2 takes that of 3
        inputs = tokens(rows, seed=rows)
        assert_close(decode(engine, inputs), decode(model, inputs), **EXACT)
    assert recorder.recorded == 4


def test_a_state_outlives_its_recording(model):
    engine, _ = make_engine(model, kept=1)
    inputs = tokens(2)
    state = engine.init_state(2)
    before = decode(engine, inputs[:, :4], state)
    decode(engine, tokens(3))
    after = decode(engine, inputs[:, 4:], state)
    assert_close(torch.cat([before, after], dim=1), decode(model, inputs), **EXACT)


def test_rows_leave_and_join_at_different_positions(model):
    engine, _ = make_engine(model)
    inputs = tokens(3)
    expected = decode(model, inputs)
    ahead, behind = engine.init_state(2), engine.init_state(1)
    decode(engine, inputs[:2, :5], ahead)
    decode(engine, inputs[2:, :2], behind)
    fresh = engine.init_state(1)
    together = ahead.select(torch.tensor([1])).join([fresh, behind])
    assert together.position.tolist() == [5, 0, 2]
    places, order = [5, 0, 2], [1, 0, 2]
    for step in range(4):
        token = torch.stack([inputs[row, place + step] for row, place in zip(order, places, strict=True)])
        logits = engine.step(token, together)
        for i, (row, place) in enumerate(zip(order, places, strict=True)):
            assert_close(logits[i], expected[row, place + step], **EXACT)
    assert ahead.position.tolist() == [5, 5], "what was selected from stays where it was"
    assert_close(decode(engine, inputs[:2, 5:], ahead), expected[:2, 5:], **EXACT)


def test_rows_that_fold_at_different_steps_leave_and_join(make_aim, monkeypatch):
    monkeypatch.setattr(recorded_step, "first_fold", lambda *_: 4)
    monkeypatch.setattr(recorded_step, "FOLD_EVERY", 3)
    model = make_aim(dtype=torch.float64, num_tokens=20)
    engine, recorder = make_engine(model, form="folded")
    inputs = tokens(3, 20)
    expected = decode(model, inputs)
    ahead, behind = engine.init_state(2), engine.init_state(1)
    decode(engine, inputs[:2, :12], ahead)
    decode(engine, inputs[2:, :5], behind)
    fresh = engine.init_state(1)
    together = ahead.select(torch.tensor([1])).join([fresh, behind])
    places, order = [12, 0, 5], [1, 0, 2]
    for step in range(8):
        token = torch.stack([inputs[row, place + step] for row, place in zip(order, places, strict=True)])
        logits = engine.step(token, together)
        for i, (row, place) in enumerate(zip(order, places, strict=True)):
            assert_close(logits[i], expected[row, place + step], **EXACT)
    assert_close(decode(engine, inputs[:2, 12:], ahead), expected[:2, 12:], **EXACT)
    assert recorder.recorded == 3, "one recording for each number of rows, whatever the positions"


def test_attention_is_recorded_again_as_it_looks_further(make_aim):
    model = make_aim(mixer="attention", positions="rope", num_tokens=150, dtype=torch.float64)
    engine, recorder = make_engine(model)
    inputs = tokens(2, 150)
    assert_close(decode(engine, inputs), decode(model, inputs), **EXACT)
    assert recorder.recorded == 3, "64, 128 and all 151 places"


def test_weights_may_change_in_place_and_be_cast(model):
    engine, recorder = make_engine(model)
    inputs = tokens(2)
    decode(engine, inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert_close(decode(engine, inputs), decode(model, inputs), **EXACT)
    assert recorder.recorded == 1
    model.cast(torch.float32)
    assert_close(decode(engine, inputs), decode(model, inputs), rtol=1e-4, atol=1e-4)
    assert recorder.recorded == 2


def test_recordings_made_in_inference_mode_serve_outside_of_it(model):
    engine, _ = make_engine(model)
    inputs = tokens(2)
    with torch.inference_mode():
        first = decode(engine, inputs)
    assert_close(decode(engine, inputs), first, **EXACT)


def test_no_more_tokens_than_an_image_has(model):
    engine, _ = make_engine(model)
    state = engine.init_state(1)
    decode(engine, tokens(1), state)
    with pytest.raises(DataError, match="a row has taken all 9 tokens of an image; begin with a new state"):
        engine.step(torch.tensor([0]), state)


def test_generate_takes_it(model):
    labels, config = torch.tensor([0, 3, 5]), SamplingConfig(cfg_scale=2.0, top_k=5)
    *_, expected = generate(model, labels, config, engine="plain")
    engine, recorder = make_engine(model)
    *_, codes = generate(model, labels, config, engine=engine)
    assert torch.equal(codes, expected)
    assert recorder.replayed == 9
    engine.guided_sample = lambda logits, uniform, **_: torch.full_like(uniform, 7, dtype=torch.long)
    *_, codes = generate(model, labels, config, engine=engine)
    assert (codes == 7).all(), "it samples too"


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(cfg_scale=2.0, temperature=0.8, top_k=5, top_p=0.9),
        [SamplingConfig(cfg_scale=2.0), SamplingConfig(top_k=7), SamplingConfig(temperature=0.0)],
    ],
    ids=["plain", "all", "each"],
)
def test_only_the_end_of_an_image_reads_a_number(model, config):
    """So that no step waits for a device; a CUDA device itself says so in ``test_cuda_graphs``."""
    engine, _ = make_engine(model)
    run = generate(model, torch.tensor([0, 3, 5]), config, engine=engine)
    next(run)
    waits = []
    for _ in range(model.config.num_tokens - 1):
        with counted_waits() as found:
            next(run)
        waits += found
    assert waits == []
    with counted_waits() as waits:
        assert list(run) == []
    assert len(waits) == 1, "the last logits are checked, after the last step"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "length", "form", "settings"),
    [
        (2, 4, "dual", {"adaln": "block"}),
        (1, 4, "state", {"adaln": "group"}),
        (5, 2, "dual", {"adaln": "group"}),
        (2, 7, "folded", {"adaln": "block"}),
        (5, 2, None, {"adaln": "group", "mixer": "attention"}),
    ],
)
def test_kernels_equal_the_model(make_aim, rows, length, form, settings, dtype, monkeypatch):
    """The last row begins a token later than the others; few rows and many take different kernels."""
    monkeypatch.setattr(recorded_step, "first_fold", lambda *_: 3)
    monkeypatch.setattr(recorded_step, "FOLD_EVERY", 2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact, model = (
        make_aim(num_tokens=8, head_width=16, **settings, dtype=each).to(device) for each in (torch.float32, dtype)
    )
    exact.load_state_dict(model.state_dict())
    engine = RecordedEngine(RecordedStep(model, triton_operators(), form=form), lambda run: run)
    inputs = tokens(rows, length + 1).to(device)
    expected = decode(exact, inputs)
    early = engine.init_state(rows)
    decode(engine, inputs[:, :1], early)
    fresh = engine.init_state(1)
    together = early.select(torch.arange(rows - 1, device=device)).join([fresh]) if rows > 1 else fresh
    for ahead in range(length):
        token = torch.cat([inputs[:-1, 1 + ahead], inputs[-1:, ahead]])
        logits = engine.step(token, together)
        wanted = torch.cat([expected[:-1, 1 + ahead], expected[-1:, ahead]])
        if dtype == torch.float32:
            assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
        else:
            assert (logits - wanted).abs().max() < 0.05 * expected.abs().max()
