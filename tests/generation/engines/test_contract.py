"""The contract that every engine and its states keep, and that the growth benchmark relies on."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.generation.engines import Engine, cuda_graphs, native
from aimamba.generation.engines.cuda_graphs import CudaGraphEngine
from aimamba.generation.engines.native import NativeEngine
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.generation.engines.recorded_step import RecordedStep
from aimamba.models import DecodingState
from benchmarks import ours
from benchmarks.growth import measure_growth
from benchmarks.measurement import Measurement
from decoding import decode

EXACT = {"rtol": 1e-10, "atol": 1e-10}
NEAR = {"rtol": 1e-4, "atol": 1e-4}
INT8_BOUND = 0.06  # root mean square error of logits, as a share of their standard deviation
SMALL = {"width": 32, "num_blocks": 2, "state_size": 16, "head_width": 16, "num_tokens": 40, "vocab_size": 32}
CUDA = {"width": 128, "num_blocks": 2, "state_size": 128, "head_width": 64, "num_tokens": 40, "vocab_size": 512}
PLACES = (0, 3, 36)  # positions at which rows meet: before and after the native engine folds its cache into a state


def make_recorded(model, form=None, cache="model"):
    return RecordedEngine(RecordedStep(model, form=form, cache=cache), lambda run: run)


def require_native():
    if native.load_kernel() is None:
        pytest.skip("no C++ compiler here")


ENGINES = {
    "plain": lambda make: make(dtype=torch.float64),
    "plain-dual": lambda make: make(dtype=torch.float64, state_size=32),
    "plain-attention": lambda make: make(dtype=torch.float64, mixer="attention", positions="rope"),
    "native": lambda make: NativeEngine(make()),
    "native-int8": lambda make: NativeEngine(make(), weights="int8"),
    "recorded-state": lambda make: make_recorded(make(dtype=torch.float64), "state"),
    "recorded-dual": lambda make: make_recorded(make(dtype=torch.float64), "dual"),
    "recorded-int8": lambda make: make_recorded(make(dtype=torch.float64), "dual", "int8"),
    "recorded-attention": lambda make: make_recorded(make(dtype=torch.float64, mixer="attention", positions="rope")),
    "cuda-graphs": lambda make: CudaGraphEngine(make(**CUDA).cuda()),
    "cuda-graphs-int8": lambda make: CudaGraphEngine(make(**CUDA).cuda(), cache="int8"),
    "cuda-graphs-attention": lambda make: CudaGraphEngine(make(**CUDA, mixer="attention", positions="rope").cuda()),
}
NAMES = [pytest.param(name, marks=pytest.mark.gpu if "cuda" in name else ()) for name in ENGINES]


@pytest.fixture(params=NAMES)
def name(request):
    if request.param.startswith("native"):
        require_native()
    return request.param


@pytest.fixture
def engine(name, make_aim):
    """An engine for a small model; products on a GPU are exact, without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield ENGINES[name](lambda **settings: make_aim(**(SMALL | settings)))
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def model(engine):
    """The plain model, by which an engine is measured."""
    return getattr(engine, "model", engine)


@pytest.fixture
def tokens(model):
    """A class and the codes after it, for each of three rows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[0], [3], [5]])
    codes = torch.randint(model.config.vocab_size, (3, model.config.num_tokens - 1), generator=generator)
    return torch.cat([labels, codes], dim=1).to(model.word_embedding.weight.device)


def alone(engine, tokens):
    """Logits of each row, decoded alone."""
    return torch.cat([decode(engine, row[None], engine.init_state(1)) for row in tokens])


def met(engine, tokens):
    """States of single rows at ``PLACES``."""
    states = []
    for row, place in zip(tokens, PLACES, strict=True):
        states.append(engine.init_state(1))
        if place:
            decode(engine, row[None, :place], states[-1])
    return states


def index(rows, tokens):
    return torch.tensor(rows, device=tokens.device)


def check_rows(name, engine, state, rows, tokens, expected, steps=3):
    """Check that rows of a state continue as they do alone; ``rows`` are (row of tokens, position)."""
    bit_identical = name.startswith("native")
    for ahead in range(steps):
        logits = decode(engine, torch.stack([tokens[row, place + ahead] for row, place in rows])[:, None], state)
        for i, (row, place) in enumerate(rows):
            if bit_identical:
                assert torch.equal(logits[i, 0], expected[row, place + ahead]), (row, place, ahead)
            else:
                assert_close(logits[i, 0], expected[row, place + ahead], **(NEAR if "cuda" in name else EXACT))
    assert state.position.tolist() == [place + steps for _, place in rows]


def test_types(engine):
    assert isinstance(engine, Engine)
    assert isinstance(engine.init_state(1), DecodingState)


def test_a_fresh_state(engine):
    state = engine.init_state(3)
    assert state.rows == 3
    assert state.position.tolist() == [0, 0, 0]
    assert all(len(tensor) == 3 for tensor in state.tensors().values())


@pytest.mark.parametrize("shift", [None, 0, 1])
def test_steps_equal_the_plain_models(name, engine, model, tokens, shift):
    logits = decode(engine, tokens, engine.init_state(3, position_shift=shift))
    if shift is None:
        with torch.no_grad():
            expected = model(tokens[:, 1:], tokens[:, 0])
        plain = decode(model, tokens, model.init_state(3))
        assert_close(plain, expected, **(EXACT if model.word_embedding.weight.dtype == torch.float64 else NEAR))
    expected = decode(model, tokens, model.init_state(3, position_shift=shift))
    assert expected.std() > 0.3, "the test's model must not be trivial"
    if "int8" in name:
        assert (logits - expected).square().mean().sqrt() < INT8_BOUND * expected.std()
    else:
        exact = model.word_embedding.weight.dtype == torch.float64
        assert_close(logits, expected, **(EXACT if exact else NEAR))


def test_rows_join_at_different_positions_and_leave(name, engine, tokens):
    expected = alone(engine, tokens)
    first, second, third = met(engine, tokens)
    state = first.join([second, third])
    assert state.rows == 3
    assert state.position.tolist() == list(PLACES)
    check_rows(name, engine, state, [(0, 0), (1, 3), (2, 36)], tokens, expected, steps=2)
    state = state.select(index([2, 0], tokens))  # one leaves, the others change places
    check_rows(name, engine, state, [(2, 38), (0, 2)], tokens, expected, steps=1)
    state = state.select(index([1], tokens)).join([engine.init_state(2)])  # another leaves, two begin
    check_rows(name, engine, state, [(0, 3), (1, 0), (2, 0)], tokens, expected)


def test_select_and_join_copy(name, engine, tokens):
    expected = alone(engine, tokens)
    state = engine.init_state(3)
    decode(engine, tokens[:, :5], state)
    twice = state.select(index([1, 1], tokens))
    joined = state.join([engine.init_state(1)])
    check_rows(name, engine, twice, [(1, 5), (1, 5)], tokens, expected)
    check_rows(name, engine, joined, [(0, 5), (1, 5), (2, 5), (0, 0)], tokens, expected)
    assert state.position.tolist() == [5, 5, 5], "the state that rows were copied from does not move"
    check_rows(name, engine, state, [(0, 5), (1, 5), (2, 5)], tokens, expected)


def test_a_state_is_moved_by_its_tensors(name, engine, tokens):
    expected = alone(engine, tokens)
    state = engine.init_state(3)
    decode(engine, tokens[:, :5], state)
    elsewhere = {key: tensor.cpu().clone() for key, tensor in state.tensors().items()}
    back = {key: tensor.to(tokens.device) for key, tensor in elsewhere.items()}
    moved = engine.init_state(1).with_tensors(back)
    assert moved.rows == 3
    assert moved.position.tolist() == [5, 5, 5]
    check_rows(name, engine, moved, [(0, 5), (1, 5), (2, 5)], tokens, expected)
    same = state.with_tensors(state.tensors())
    check_rows(name, engine, same, [(0, 5), (1, 5), (2, 5)], tokens, expected)
    check_rows(name, engine, state, [(0, 5), (1, 5), (2, 5)], tokens, expected)


def test_tensors_of_other_names_are_refused(engine):
    state = engine.init_state(1)
    tensors = state.tensors()
    del tensors["position"]
    with pytest.raises(ValueError, match="these names differ: position"):
        state.with_tensors(tensors)


def expected_bytes(name, config):
    """Bytes that the mixers remember of a row, by hand."""
    inner, tokens = config.inner, config.num_tokens
    heads, state = inner // config.head_width, config.state_size
    convolved = inner + 2 * state
    if "attention" in name:  # keys and values, in every other block
        return config.num_blocks // 2 * 2 * (tokens + 1) * config.width * (4 if "cuda" in name else 8)
    if name == "plain":
        numbers = 3 * convolved + inner * state
        return config.num_blocks * 8 * numbers
    if name == "plain-dual":
        numbers = 3 * convolved + (tokens + 1) * (inner + state + heads)
        return config.num_blocks * 8 * numbers
    if name.startswith("native"):  # x and B of as many tokens as are cached, decays, the state and its decays
        slots = min(tokens, max(2 * state, 32))
        small = 4 * (3 * convolved + heads * slots + inner * state + heads)
        return config.num_blocks * (small + (2 if "int8" in name else 4) * slots * (inner + state))
    width = 4 if "cuda" in name else 8
    if name == "recorded-state":
        return config.num_blocks * width * (4 * convolved + inner * state)
    slots = -(-tokens // 16) * 16
    x = inner // width if "int8" in name else inner
    return config.num_blocks * width * (4 * convolved + slots * (x + state + heads))


def test_bytes_are_those_of_what_mixers_remember(name, engine, model, tokens):
    wanted = expected_bytes(name, model.config)
    state = engine.init_state(1)
    assert state.nbytes == wanted
    assert engine.init_state(3).nbytes == 3 * wanted
    decode(engine, tokens[:1, :4], state)
    assert state.nbytes == wanted
    assert state.join([engine.init_state(2)]).nbytes == 3 * wanted


# Variant and subject of the benchmark, tokens, and a tensor that this kind of state alone has in each mixer.
GROWTH = {
    "plain": ("plain", "aim", 48, "ssm"),
    "plain-dual": ("plain", "aim", 24, "weights"),
    "plain-attention": ("plain", "attention", 24, None),
    "native": ("native", "aim", 24, None),
    "native-int8": ("native-int8", "aim", 24, None),
    "recorded-state": ("plain", "aim", 24, "ssm"),
    "recorded-dual": ("plain", "aim", 24, "weights"),
    "recorded-int8": ("plain", "aim", 24, "weights"),
    "recorded-attention": ("plain", "attention", 24, None),
    "cuda-graphs": ("cuda-graphs", "aim", 24, None),
    "cuda-graphs-int8": ("cuda-graphs-int8", "aim", 24, None),
    "cuda-graphs-attention": ("cuda-graphs", "attention", 24, None),
}


def test_growth_knows_every_engine():
    assert GROWTH.keys() == ENGINES.keys()


def test_growth_is_measured_on_every_state(monkeypatch, name):
    variant, subject, tokens, tensor = GROWTH[name]
    if name.startswith("recorded"):  # in place of an engine that the benchmark knows by name
        given = {"state": ("state",), "dual": ("dual",), "int8": ("dual", "int8")}.get(
            name.removeprefix("recorded-"), ()
        )
        monkeypatch.setattr(ours, "make_engine", lambda model, _: make_recorded(model, *given))
    measurement = Measurement(
        section="growth",
        subject=subject,
        variant=variant,
        device="cuda" if "cuda" in name else "cpu",
        tokens=tokens,
        batch=2,
        quick=True,
    )
    found = measure_growth(measurement)
    assert found["milliseconds_per_token"]["median"] > 0
    state = ours.Ours(measurement).engine.init_state(1)
    assert found["remembered_bytes"] == state.nbytes > 0
    assert tensor is None or f"0.{tensor}" in state.tensors()


def test_unsupported_is_one_verb(make_aim):
    model = make_aim(mixer="attention")
    for module in (native, cuda_graphs):
        assert isinstance(module.unsupported(model), str)
