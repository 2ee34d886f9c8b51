"""The step for recordings computes what ``AiM.step`` computes."""

import itertools
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from aimamba import Pipeline
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines import recorded_step
from aimamba.generation.engines.recorded_step import (
    RecordedStep,
    bytes_per_row,
    choose_form,
    first_fold,
    triton_operators,
    unsupported,
)
from aimamba.models import AIM_PRESETS, AiM

VARIANTS = [
    {"adaln": "none", "positions": "none", "form": "state"},
    {"adaln": "block", "positions": "learned", "form": "state"},
    {"adaln": "block", "positions": "learned", "form": "dual"},
    {"adaln": "group", "positions": "learned", "form": "dual"},
    {"adaln": "block", "positions": "learned", "form": "folded"},
    {"adaln": "single", "positions": "none", "form": "dual", "conv_width": 1},
    {"adaln": "group", "positions": "learned", "form": "state", "conv_width": 3},
    {"adaln": "block", "positions": "rope", "mixer": "attention"},
    {"adaln": "group", "positions": "learned", "mixer": "attention"},
]


FORMS = ("state", "dual", "folded")


def named(variant):
    return "-".join(str(value) for value in variant.values())


def spoil(memory):
    """Fill with NaN what a step must not look at."""
    for name, tensor in memory.items():
        if name.split(".")[-1] in ("window", "ssm", "B", "x", "weights", "folded", "carry"):
            tensor.fill_(torch.nan)


@torch.no_grad()
def decode_in_memory(step, inputs, memory):
    """Logits of a class and the codes after it, (B, L, V), all rows together."""
    logits = []
    for position, token in enumerate(inputs.unbind(1)):
        if position == 0:
            step.begin(token, memory)
        logits.append(step(token, memory, places=step.places(position)))
        memory["position"].add_(1)
    return torch.stack(logits, dim=1)


@pytest.fixture
def often(monkeypatch):
    """Fold for the first time after 16 tokens, and then after every 5."""
    monkeypatch.setattr(recorded_step, "FOLD_EVERY", 5)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("position_shift", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
@torch.no_grad()
def test_steps_equal_the_models(make_aim, variant, position_shift):
    settings = {name: value for name, value in variant.items() if name != "form"}
    model = make_aim(dtype=torch.float64, num_tokens=70, decode_position_shift=position_shift, **settings)
    inputs = torch.randint(5, (3, 70), generator=torch.Generator().manual_seed(0))
    state = model.init_state(3)
    expected = torch.stack([model.step(token, state) for token in inputs.unbind(1)], dim=1)
    step = RecordedStep(model, form=variant.get("form"))
    memory = step.new_memory(3)
    memory["position_shift"].fill_(position_shift)
    spoil(memory)
    assert_close(decode_in_memory(step, inputs, memory), expected, rtol=1e-10, atol=1e-10)
    memory["position"].zero_()  # the same memory serves again, whatever is left in it
    order = torch.tensor([2, 0, 1])
    assert_close(decode_in_memory(step, inputs[order], memory), expected[order], rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("form", ["state", "dual", "folded"])
@torch.no_grad()
def test_bfloat16_stays_near(make_aim, form):
    model = make_aim(dtype=torch.bfloat16, num_tokens=23, width=32)
    inputs = torch.randint(5, (2, 23), generator=torch.Generator().manual_seed(0))
    exact = make_aim(dtype=torch.float32, num_tokens=23, width=32)
    exact.load_state_dict(model.state_dict())
    state = exact.init_state(2)
    expected = torch.stack([exact.step(token, state) for token in inputs.unbind(1)], dim=1)
    step = RecordedStep(model, form=form)
    logits = decode_in_memory(step, inputs, step.new_memory(2))
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_memory_and_step_never_change_address_or_shape(make_aim):
    step = RecordedStep(make_aim())
    memory = step.new_memory(2)
    before = {name: (tensor.data_ptr(), tensor.shape) for name, tensor in memory.items()}
    decode_in_memory(step, torch.randint(5, (2, 9)), memory)
    assert {name: (tensor.data_ptr(), tensor.shape) for name, tensor in memory.items()} == before


@pytest.mark.parametrize("form", ["state", "dual", "folded"])
@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_a_step_never_waits_for_the_device(make_aim, monkeypatch, mixer, form):
    step = RecordedStep(make_aim(mixer=mixer), form=form)
    memory = step.new_memory(2)

    def refuse(tensor, *_):
        raise AssertionError("a step read a value from the device")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    inputs = torch.ones(2, 3, dtype=torch.long)
    logits = decode_in_memory(step, inputs, memory)
    monkeypatch.undo()
    assert logits.isfinite().all()


@torch.no_grad()
def test_some_rows_begin_while_others_go_on(make_aim):
    model = make_aim(dtype=torch.float64)
    inputs = torch.randint(5, (2, 9), generator=torch.Generator().manual_seed(1))
    state = model.init_state(2)
    expected = torch.stack([model.step(token, state) for token in inputs.unbind(1)], dim=1)
    step = RecordedStep(model)
    memory = step.new_memory(2)
    decode_in_memory(step, inputs[:, :4], memory)
    memory["position"][1] = 0
    for ahead in range(4):
        token = torch.stack([inputs[0, 4 + ahead], inputs[1, ahead]])
        step.begin(token, memory)
        logits = step(token, memory, places=step.places(4 + ahead))
        memory["position"].add_(1)
        assert_close(logits, torch.stack([expected[0, 4 + ahead], expected[1, ahead]]), rtol=1e-10, atol=1e-10)


def moved(memory):
    """Bytes of a row's caches that the last token of an image reads or writes."""
    cached = {name: tensor[0].nbytes for name, tensor in memory.items() if name.split(".")[-1] in ("B", "x", "weights")}
    return sum(cached.values()) + sum(size for name, size in cached.items() if name.endswith("weights"))


@pytest.mark.parametrize("preset", AIM_PRESETS)
def test_published_sizes_take_the_dual_form(preset):
    with torch.device("meta"):
        model = AiM(AIM_PRESETS[preset])
        assert choose_form(model) == "dual"
        assert choose_form(model.to(torch.bfloat16)) == "dual"
        step = RecordedStep(model)
        memory = step.new_memory(2)
        narrow = RecordedStep(model, cache="int8").new_memory(2)
    assert model.config.num_blocks * bytes_per_row(model, "dual", model.config.num_tokens - 1) == moved(memory)
    assert model.config.num_blocks * bytes_per_row(model, "dual", model.config.num_tokens - 1, "int8") == moved(narrow)
    assert moved(narrow) < 0.6 * moved(memory)


class Launched:
    """Stands for a kernel and notes the tensors that it would be launched on."""

    def __init__(self, launches):
        self.launches = launches

    def __getitem__(self, grid):
        return lambda *given, **_: self.launches.append([each for each in given if isinstance(each, torch.Tensor)])


class Computing(TorchDispatchMode):
    """Counts the operations of torch that would launch a kernel: those that do more than to allocate or to view."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        made = operation._schema.name.startswith(("aten::empty", "aten::new_empty"))
        self.count += not made and not operation.is_view
        return operation(*arguments, **(options or {}))


@pytest.fixture
def launches(monkeypatch):
    """Tensors that each kernel of a step is launched on. Nothing is computed."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from aimamba.ops.embedding.triton import step as embedding
    from aimamba.ops.linear.triton import linear as products
    from aimamba.ops.mixer.triton import folded as folding
    from aimamba.ops.mixer.triton import step as mixing
    from aimamba.ops.norm.triton import residual as norms

    found = []
    for module, name in [
        (products, "_linear_kernel"), (products, "_residual_kernel"), (mixing, "_dual_kernel"),
        (folding, "_folded_kernel"), (norms, "_norm_step_kernel"), (embedding, "_embed_step_kernel"),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, Launched(found))
    return found


@pytest.mark.parametrize("form", ["dual", "folded"])
@torch.no_grad()
def test_a_block_is_three_launches_and_reads_its_weights_once(make_aim, launches, form):
    found = {}
    for blocks in (2, 3):
        model = make_aim(num_blocks=blocks, num_tokens=16)
        step = RecordedStep(model, triton_operators(), form=form)
        memory = step.new_memory(2)
        step.begin(torch.tensor([0, 1]), memory)
        launches.clear()
        with Computing() as computing:
            step(torch.tensor([0, 1]), memory, places=0)
        found[blocks] = len(launches), computing.count
        given = [tensor.data_ptr() for launch in launches for tensor in launch]
        weights = [weight for block in model.blocks for weight in block.mixer.parameters()]
        taps = {block.mixer.conv_weight: taps for block, taps in zip(model.blocks, step._taps, strict=True)}
        weights = [taps.get(weight, weight) for weight in weights]
        assert all(given.count(weight.data_ptr()) == 1 for weight in weights)
        names = ("B", "x", "weights", "folded", "carry")
        caches = [tensor for name, tensor in memory.items() if name.split(".")[-1] in names]
        assert all(given.count(cache.data_ptr()) == 1 for cache in caches)
    launched, computed = (more - fewer for more, fewer in zip(found[3], found[2], strict=True))
    assert launched == 3
    assert computed == 0
    assert found[2] == (3 * 2 + 3, 0), "before the blocks one, after them the norm and the head"


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("preset", AIM_PRESETS)
@torch.no_grad()
def test_published_sizes_take_three_launches_a_block_for_one_image_and_two(preset, rows, launches):
    blocks = 3
    with torch.device("meta"):
        model = AiM(replace(AIM_PRESETS[preset], num_blocks=blocks)).to(torch.bfloat16)
        step = RecordedStep(model, triton_operators())
        memory, inputs = step.new_memory(rows), torch.zeros(rows, dtype=torch.long)
        with Computing() as computing:
            step(inputs, memory, places=0)
    assert (len(launches), computing.count) == (3 * blocks + 3, 0)


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        ({"num_tokens": 64, "state_size": 128}, "dual"),
        ({"num_tokens": 4096, "state_size": 128}, "folded"),
        ({"num_tokens": 1200, "state_size": 128, "dtype": torch.bfloat16}, "folded"),
        ({"num_tokens": 4096, "state_size": 16}, "state"),
    ],
)
def test_long_sequences_take_a_state(make_aim, settings, form):
    """A small state is read and written sooner than a cache of tokens."""
    model = make_aim(width=256, head_width=64, **settings)
    assert choose_form(model) == form
    total = {each: sum(bytes_per_row(model, each, t) for t in range(model.config.steps)) for each in FORMS}
    assert total[form] == min(total.values())


def test_fold_and_replay_must_gain_a_fifth(make_aim):
    model = make_aim(width=256, head_width=64, state_size=128, num_tokens=220)
    total = {each: sum(bytes_per_row(model, each, t) for t in range(model.config.steps)) for each in FORMS}
    assert 0.8 < total["folded"] / total["dual"] < 0.95
    assert choose_form(model) == "dual"


def test_bytes_of_fold_and_replay(make_aim):
    """Like the dual form up to the first fold; then the state is read, and written once in as many tokens."""
    model = make_aim(width=256, head_width=64, state_size=128, num_tokens=1000, dtype=torch.bfloat16)
    first, every, state = first_fold(model), recorded_step.FOLD_EVERY, 4 * model.config.inner * 128
    assert (first, every) == (288, 64)
    token, heads = bytes_per_row(model, "dual", 0), model.config.inner // 64
    found = [bytes_per_row(model, "folded", t) for t in range(first + 2 * every)]
    assert found[: first - 1] == [bytes_per_row(model, "dual", t) for t in range(first - 1)]
    assert found[first - 1] == first * token + state + (first - 1) * token
    assert found[first] == found[first + every] == token + state + 8 * heads
    assert found[first + every - 1] == every * token + state + 8 * heads + 2 * state + (every - 1) * token
    memory = RecordedStep(model, form="folded").new_memory(2)
    assert memory["0.B"].shape[1] == first
    assert memory["0.folded"][0].nbytes == state
    narrow = RecordedStep(model, form="folded", cache="int8").new_memory(2)
    assert narrow["0.B"].shape[1] == first_fold(model, "int8") == 544, "as many bytes of narrower tokens"


def test_why_the_kernels_do_not_support_a_model(make_aim, monkeypatch):
    assert unsupported(make_aim(state_size=6)) == "state_size must be a power of two, got 6"
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.10.1"))
    assert unsupported(make_aim()) is None
    assert unsupported(make_aim(mixer="attention", state_size=6)) is None, "attention has no such state"
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.4.0"))
    assert unsupported(make_aim()) == "Triton 3.4.0 is too old, expected 3.5 or newer (torch 2.9 brings it)"
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "Triton cannot be imported" in unsupported(make_aim())


@torch.no_grad()
def test_the_packaged_weights(monkeypatch):
    """In bfloat16 the step is no further from float32 than the model's own is: it rounds less often."""
    exact = Pipeline.from_pretrained("avatars-64").generator.eval().cast(torch.float32)
    narrow = Pipeline.from_pretrained("avatars-64").generator.eval().cast(torch.bfloat16)
    labels = torch.tensor([0, 7])
    *_, codes = itertools.islice(generate(exact, labels, SamplingConfig()), 20)
    inputs = torch.cat([labels[:, None], codes[:, :-1]], dim=1)

    def by_model(model):
        state = model.init_state(len(labels))
        return torch.stack([model.step(token, state) for token in inputs.unbind(1)], dim=1).float()

    def by_step(model, form):
        step = RecordedStep(model, form=form)
        return decode_in_memory(step, inputs, step.new_memory(len(labels))).float()

    expected = by_model(exact)
    rounding = (by_model(narrow) - expected).abs().mean()
    monkeypatch.setattr(recorded_step, "first_fold", lambda *_: 8)
    monkeypatch.setattr(recorded_step, "FOLD_EVERY", 4)
    for form in FORMS:
        assert_close(by_step(exact, form), expected, rtol=1e-4, atol=1e-4)
        assert (by_step(narrow, form) - expected).abs().mean() < rounding


@pytest.mark.parametrize("form", ["dual", "folded"])
@torch.no_grad()
def test_the_packaged_weights_with_an_8_bit_cache(form, monkeypatch):
    """``python -m benchmarks.cache_quality`` has the figures for every class; these are bounds."""
    exact = Pipeline.from_pretrained("avatars-64").generator.eval()
    labels = torch.tensor([0, 7])
    *_, codes = generate(exact, labels, SamplingConfig())
    inputs = torch.cat([labels[:, None], codes[:, :-1]], dim=1)

    monkeypatch.setattr(recorded_step, "first_fold", lambda *_: 32)
    monkeypatch.setattr(recorded_step, "FOLD_EVERY", 16)

    def logits(cache):
        step = RecordedStep(exact, form=form, cache=cache)
        return decode_in_memory(step, inputs, step.new_memory(len(labels)))

    expected, found = logits("model"), logits("int8")
    assert 0 < (found - expected).square().mean().sqrt() < 0.005 * expected.std()
    wanted, given = expected.log_softmax(dim=-1), found.log_softmax(dim=-1)
    divergence = (wanted.exp() * (wanted - given)).sum(dim=-1).mean() / torch.log(torch.tensor(2.0))
    assert divergence < 2e-4, "bits a token"
    assert (found.argmax(dim=-1) == expected.argmax(dim=-1)).float().mean() > 0.98
