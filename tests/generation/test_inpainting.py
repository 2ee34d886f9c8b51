"""Masked tokens are drawn so that they fit what follows; every other token stays."""

import itertools

import pytest
import torch

from aimamba.errors import CheckpointError, ConfigError, DataError
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines import native
from aimamba.generation.engines.native import NativeEngine
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.generation.engines.recorded_step import RecordedStep
from aimamba.generation.inpainting import inpaint
from refusals import one_line_error

SIZES = {"width": 16, "head_width": 16, "state_size": 16}
GUIDED = SamplingConfig(cfg_scale=2.0)
HALF = SamplingConfig(cfg_scale=2.0, cfg_end=0.5, negative=1)
MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()
LABELS = torch.tensor([0, 3, 4])
SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def model(make_aim):
    return make_aim(**SIZES)


@pytest.fixture(scope="module")
def codes(model):
    return torch.randint(24, (3, 9), generator=torch.Generator().manual_seed(0))


def drawn(model, codes, *, rows=slice(None), config=GUIDED, **options):
    *_, found = inpaint(model, LABELS[rows], config, codes=codes[rows], mask=MASK[rows], seeds=SEEDS[rows], **options)
    return found


@pytest.mark.parametrize("method", ["resample", "best", "plain"])
@pytest.mark.parametrize("config", [GUIDED, HALF, SamplingConfig(temperature=0.7, top_k=5)], ids=str)
def test_the_rest_stays_and_no_image_depends_on_its_batch(model, codes, method, config):
    steps = [step.clone() for step in inpaint(
        model, LABELS, config, codes=codes, mask=MASK, seeds=SEEDS, method=method, candidates=5
    )]  # fmt: skip
    assert [step.shape for step in steps] == [(3, t) for t in range(1, 10)]
    found = steps[-1]
    assert torch.equal(found[~MASK], codes[~MASK])
    assert not torch.equal(found, codes)
    for i in range(3):
        alone = drawn(model, codes, rows=slice(i, i + 1), config=config, method=method, candidates=5)
        assert torch.equal(alone, found[i : i + 1])


@pytest.mark.parametrize("name", ["native", "recorded"])
def test_engines_draw_the_same(model, codes, name):
    if name == "native" and native.load_kernel() is None:
        pytest.skip("no C++ compiler here")
    engine = NativeEngine(model) if name == "native" else RecordedEngine(RecordedStep(model), lambda run: run)
    for config in (GUIDED, HALF):
        expected = drawn(model, codes, config=config, engine="plain", candidates=4)
        assert torch.equal(drawn(model, codes, config=config, engine=engine, candidates=4), expected)


def test_one_candidate_is_plain_and_what_is_masked_to_the_end_is_a_completion(model, codes):
    assert torch.equal(drawn(model, codes, candidates=1), drawn(model, codes, method="plain"))
    mask = (torch.arange(9) >= 4).expand(3, -1)
    *_, found = inpaint(model, LABELS, GUIDED, codes=codes, mask=mask, seeds=SEEDS, method="plain")
    *_, completed = generate(model, LABELS, GUIDED, seeds=SEEDS, prefix=codes[:, :4])
    assert torch.equal(found, completed)


def test_with_many_candidates_it_samples_from_the_posterior(make_aim):
    """Two masked tokens of five codes: all 25 fillings are weighed by hand."""
    model = make_aim(vocab_size=5, num_tokens=4)
    codes, mask = torch.tensor([[0, 2, 1, 3]]), torch.tensor([[True, False, True, False]])
    fillings = torch.tensor([[a, 2, b, 3] for a, b in itertools.product(range(5), repeat=2)])
    with torch.no_grad():
        logits = model(fillings[:, :-1], torch.full((25,), 1)).log_softmax(dim=-1)
    expected = logits.gather(-1, fillings[..., None]).sum(dim=(1, 2)).softmax(dim=0)
    draws = 600
    *_, found = inpaint(
        model, torch.full((draws,), 1), SamplingConfig(), codes=codes.expand(draws, -1),
        mask=mask.expand(draws, -1), seeds=range(draws), candidates=24, engine="plain",
    )  # fmt: skip
    seen = torch.bincount(5 * found[:, 0] + found[:, 2], minlength=25) / draws
    blind = logits[:, 0].exp().gather(-1, fillings[:, :1])[:, 0] * logits[:, 2].exp().gather(-1, fillings[:, 2:3])[:, 0]
    distance, far = (seen - expected).abs().sum(), (blind / blind.sum() - expected).abs().sum()
    assert distance < 0.3 < far, (distance, far)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"method": "smart"}, ConfigError, "method must be one of resample, best, plain, got 'smart'"),
        ({"candidates": 0}, ConfigError, "candidates must be from 1 to 10,000, got 0"),
        ({"candidates": 10**11}, ConfigError, "candidates must be from 1 to 10,000, got 100000000000"),
        ({"mask": torch.zeros(3, 9, dtype=torch.bool)}, DataError, "covers no token"),
        ({"mask": torch.ones(3, 8, dtype=torch.bool)}, DataError, "expected a mask of booleans"),
        ({"codes": torch.full((3, 9), 24)}, DataError, "codes outside 0 to 23"),
    ],
)
def test_what_does_not_fit_is_refused(model, codes, options, error, named):
    with one_line_error(error) as caught:
        list(inpaint(model, LABELS, GUIDED, **({"codes": codes, "mask": MASK} | options)))
    assert named in str(caught.value)


def test_damaged_weights_are_refused(make_aim, codes):
    model = make_aim()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(CheckpointError, match="logits contain NaN"):
        drawn(model, codes)
