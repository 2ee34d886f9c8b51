"""The decoding loop: an image depends on weights, label, settings and seed, and on nothing else."""

import pytest
import torch

from aimamba.errors import CheckpointError, ConfigError, DataError
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.generation.engines.recorded_step import RecordedStep
from refusals import one_line_error

GUIDED = SamplingConfig(cfg_scale=2.5, top_p=0.95)
CONFIGS = [
    SamplingConfig(),
    GUIDED,
    SamplingConfig(temperature=0.7, top_k=5),
    SamplingConfig(cfg_scale=4.0, cfg_schedule="linear"),
    SamplingConfig(temperature=0.0),
    SamplingConfig(cfg_scale=0.0),
    SamplingConfig(cfg_scale=2.0, cfg_schedule="power-cosine", cfg_power=2.0),
    SamplingConfig(cfg_scale=3.0, cfg_start=0.25, cfg_end=0.5, min_p=0.1),
    SamplingConfig(cfg_scale=3.0, negative=2, temperature=0.5, temperature_end=2.0),
]
MIXERS = ("mamba2", "attention")


@pytest.fixture(params=MIXERS)
def model(request, make_aim):
    return make_aim(mixer=request.param, num_tokens=16)


def finished(model, labels, config=GUIDED, **options):
    """Generate, and return the finished codes."""
    *_, codes = generate(model, torch.as_tensor(labels), config, **options)
    return codes


def rows_per_step(monkeypatch, model):
    """Record how many rows each step is given."""
    rows, step = [], model.step

    def watched(inputs, state):
        rows.append(len(inputs))
        return step(inputs, state)

    monkeypatch.setattr(model, "step", watched)
    return rows


def test_codes_vary_with_label_and_seed(model):
    codes = finished(model, [0, 0, 1, 2, 3, 4, 5], seeds=[0, 1, 0, 0, 0, 0, 0])
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < model.config.vocab_size
    assert len({tuple(row) for row in codes.tolist()}) == 7, "the test's model must not be trivial"


@pytest.mark.parametrize("size", [1, 4, 7])
def test_batches_of_every_size_generate_the_same(model, size):
    labels, seeds = [0, 1, 2, 3, 4, 5, 0], list(range(10, 17))
    whole = finished(model, labels, seeds=seeds)
    parts = [finished(model, labels[i : i + size], seeds=seeds[i : i + size]) for i in range(0, 7, size)]
    assert torch.equal(torch.cat(parts), whole)


def test_order_does_not_matter(model):
    labels, seeds = torch.tensor([0, 1, 2, 3, 4, 5, 0]), [5, 5, 6, 7, 8, 9, 10]
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    shuffled = finished(model, labels[order], seeds=[seeds[i] for i in order])
    assert torch.equal(shuffled, finished(model, labels, seeds=seeds)[order])


def test_settings_of_other_images_do_not_matter(model):
    labels, seeds = [0, 1, 2, 3, 4, 2, 1, 0, 1], [3] * 9
    together = finished(model, labels, CONFIGS, seeds=seeds)
    for i, config in enumerate(CONFIGS):
        assert torch.equal(together[i : i + 1], finished(model, labels[i : i + 1], config, seeds=[3])), config


def test_seeds_count_up_from_the_configs(model):
    config = SamplingConfig(seed=40)
    assert torch.equal(finished(model, [1, 2, 3], config), finished(model, [1, 2, 3], config, seeds=[40, 41, 42]))
    each = [SamplingConfig(seed=seed) for seed in (9, 9, 2)]
    assert torch.equal(finished(model, [1, 1, 3], each), finished(model, [1, 1, 3], SamplingConfig(), seeds=[9, 9, 2]))


def test_the_global_generator_is_neither_used_nor_moved(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = finished(model, [1, 2])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(finished(model, [1, 2]), first)


@pytest.mark.parametrize("schedule", ["constant", "linear", "power-cosine"])
def test_no_guidance_costs_one_pass(model, monkeypatch, schedule):
    rows = rows_per_step(monkeypatch, model)
    finished(model, [1, 2, 3], SamplingConfig(cfg_scale=1.0, cfg_schedule=schedule))
    assert rows == [3] * 16


def test_guidance_doubles_only_the_guided_rows(model, monkeypatch):
    rows = rows_per_step(monkeypatch, model)
    finished(model, [0, 1, 2, 3, 4, 2, 1], CONFIGS[:7])
    assert rows == [7 + 4] * 16
    rows.clear()
    finished(model, [0, 1, 2])
    assert rows == [6] * 16


def test_guidance_of_the_null_class_changes_nothing(model):
    null_class = model.config.num_classes
    assert torch.equal(finished(model, [null_class], GUIDED), finished(model, [null_class], SamplingConfig(top_p=0.95)))


def test_scale_zero_forgets_the_class(model):
    config = SamplingConfig(cfg_scale=0.0)
    codes = finished(model, [0, 1, model.config.num_classes], config, seeds=[7, 7, 7])
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


def test_top_k_of_one_is_greedy(model):
    labels = [0, 1, 2, 3, 4, 5]
    greedy = finished(model, labels, SamplingConfig(temperature=0.0))
    assert torch.equal(finished(model, labels, SamplingConfig(top_k=1)), greedy)
    assert torch.equal(finished(model, labels, SamplingConfig(top_p=1e-9, seed=99)), greedy)


@torch.no_grad()
def test_greedy_codes_are_the_likeliest_of_the_parallel_form(model):
    labels = torch.tensor([0, 3, 5])
    codes = finished(model, labels, SamplingConfig(temperature=0.0))
    assert torch.equal(model(codes[:, :-1], labels).argmax(dim=-1), codes)


@pytest.mark.parametrize("known", [0, 1, 7, 15, 16])
def test_completing_a_prefix_reproduces_the_run(model, known):
    labels, seeds = [0, 3, 5], [1, 2, 3]
    whole = finished(model, labels, seeds=seeds)
    assert torch.equal(finished(model, labels, seeds=seeds, prefix=whole[:, :known]), whole)


def test_a_prefix_is_kept_and_changes_what_follows(model):
    labels, seeds = [0, 3], [1, 2]
    whole = finished(model, labels, seeds=seeds)
    prefix = (whole[:, :4] + 1) % model.config.vocab_size
    completed = finished(model, labels, seeds=seeds, prefix=prefix)
    assert torch.equal(completed[:, :4], prefix)
    assert not torch.equal(completed[:, 4:], whole[:, 4:])


def test_yields_after_every_code(model):
    steps = [codes.clone() for codes in generate(model, torch.tensor([1, 2]), GUIDED)]
    assert [tuple(codes.shape) for codes in steps] == [(2, t) for t in range(1, 17)]
    assert all(torch.equal(codes, steps[-1][:, : codes.shape[1]]) for codes in steps)


def test_can_be_stopped_early(model, monkeypatch):
    rows = rows_per_step(monkeypatch, model)
    run = generate(model, torch.tensor([1]))
    next(run), next(run)
    run.close()
    assert len(rows) == 2
    assert torch.is_grad_enabled()


def test_grad_mode_of_the_caller_is_untouched_between_codes(model):
    for codes in generate(model, torch.tensor([1])):
        assert torch.is_grad_enabled()
        assert not codes.requires_grad


def test_codes_can_be_trained_on(model):
    codes = finished(model, [0, 1])
    codes[0, 0] = 0
    embedded = model.word_embedding(codes)
    embedded.sum().backward()
    assert model.word_embedding.weight.grad.isfinite().all()


def test_position_shift_can_be_overridden(make_aim):
    labels, greedy = [0, 1, 2, 3], SamplingConfig(temperature=0.0)
    plain = make_aim(num_tokens=16)
    shifted = make_aim(num_tokens=16, decode_position_shift=1)
    assert torch.equal(finished(shifted, labels, greedy, position_shift=0), finished(plain, labels, greedy))
    assert torch.equal(finished(plain, labels, greedy, position_shift=1), finished(shifted, labels, greedy))
    assert not torch.equal(finished(plain, labels, greedy), finished(shifted, labels, greedy))


def test_bfloat16(make_aim):
    model = make_aim(dtype=torch.bfloat16, num_tokens=16)
    codes = finished(model, [0, 1, 2])
    assert torch.equal(codes[1:2], finished(model, [1], seeds=[1]))


@pytest.mark.parametrize(
    ("labels", "options", "error", "named"),
    [
        ([], {}, DataError, "no labels"),
        ([0, -1], {}, DataError, "label -1 is out of range"),
        ([0, 6], {}, DataError, "label 6 is out of range: expected 0 to 4, or 5 for the null class"),
        ([0, 1], {"seeds": [1]}, ConfigError, "2 labels, 2 configs and 1 seeds"),
        ([0, 1], {"config": [GUIDED] * 3}, ConfigError, "2 labels, 3 configs and 3 seeds"),
        ([0], {"prefix": torch.zeros(2, 3, dtype=torch.int64)}, DataError, r"prefix of shape \(2, 3\)"),
        ([0], {"prefix": torch.zeros(1, 17, dtype=torch.int64)}, DataError, r"prefix of shape \(1, 17\)"),
        ([0], {"prefix": torch.full((1, 3), 24)}, DataError, "codes outside 0 to 23"),
        ([0], {"prefix": torch.full((1, 3), -1)}, DataError, "codes outside 0 to 23"),
    ],
)
def test_what_does_not_fit_is_refused(model, labels, options, error, named):
    with one_line_error(error, match=named):
        finished(model, torch.tensor(labels, dtype=torch.int64), **options)


@pytest.mark.parametrize("config", [GUIDED, SamplingConfig(temperature=0.5, top_k=3), CONFIGS[:3]], ids=type)
def test_the_loop_never_waits_for_the_device(model, monkeypatch, config):
    """A value read from a device waits for all that was launched before, and a number sent to one may too."""
    engine = RecordedEngine(RecordedStep(model), lambda run: run)
    run = generate(model, torch.tensor([0, 1, 2]), config, engine=engine)
    next(run)

    def refuse(*_, **__):
        raise AssertionError("the loop read from the device, or wrote to it")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, refuse)
    for _ in range(15):
        codes = next(run)
    monkeypatch.undo()
    assert codes.shape == (3, 16)


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("name", ["word_embedding.weight", "norm.weight", "condition.table.weight"])
def test_damaged_weights_are_refused(model, name, engine):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = torch.nan
    with pytest.raises(CheckpointError, match="logits contain NaN or infinity: its weights are damaged"):
        finished(model, [0, 1], engine=engine)


def test_guidance_ends_with_its_interval_and_costs_one_row_from_there(model, monkeypatch):
    rows = rows_per_step(monkeypatch, model)
    config = SamplingConfig(cfg_scale=3.0, cfg_end=0.5, seed=2)
    found = finished(model, [0, 1], config)
    assert rows == [4] * 8 + [2] * 8
    whole = finished(model, [0, 1], SamplingConfig(cfg_scale=3.0, seed=2))
    assert torch.equal(found[:, :8], whole[:, :8])
    completed = finished(model, [0, 1], SamplingConfig(seed=2), prefix=found[:, :8])
    assert torch.equal(found, completed)
    late = finished(model, [0, 1], SamplingConfig(cfg_scale=3.0, cfg_start=0.5, seed=2))
    assert torch.equal(late[:, :8], finished(model, [0, 1], SamplingConfig(seed=2))[:, :8])


def test_a_negative_class_stands_in_for_the_null_class(model):
    labels = torch.tensor([0, 1])
    null = finished(model, labels, SamplingConfig(cfg_scale=2.0, negative=model.condition.null_class))
    assert torch.equal(null, finished(model, labels, SamplingConfig(cfg_scale=2.0)))
    itself = finished(model, [2], SamplingConfig(cfg_scale=5.0, negative=2))
    assert torch.equal(itself, finished(model, [2], SamplingConfig()))
    for negative, named in (("cats", "has no class names"), (6, "negative class 6 is out of range: expected 0 to 4")):
        with one_line_error(ConfigError, match=named):
            finished(model, labels, SamplingConfig(cfg_scale=2.0, negative=negative))


@pytest.mark.parametrize("recorded", [False, True])
def test_mixtures_of_classes(model, recorded):
    engine = RecordedEngine(RecordedStep(model), lambda run: run) if recorded else "plain"
    labels = torch.tensor([0, 3, 5])
    weights = torch.nn.functional.one_hot(labels, 6).float()
    assert torch.equal(finished(model, weights, engine=engine), finished(model, labels, engine=engine))
    half = torch.tensor([[0.5, 0, 0, 0.5, 0], [0, 0, 0, 0, 1.0]])
    found = finished(model, half, engine=engine)
    assert torch.equal(found[:1], finished(model, half[:1], engine=engine))
    assert torch.equal(found, finished(model, half, engine="plain"))
    assert not torch.equal(found[0], finished(model, [0])[0])


def test_the_temperature_ends_where_it_is_told(model):
    config = SamplingConfig(temperature=0.0, temperature_end=3.0, seed=1)
    assert [config.temperature_at(t, 16) for t in (0, 5, 15)] == [0.0, 1.0, 3.0]
    greedy, found = finished(model, [0], SamplingConfig(temperature=0.0)), finished(model, [0], config)
    assert greedy[0, 0] == found[0, 0]
    assert not torch.equal(greedy, found)
