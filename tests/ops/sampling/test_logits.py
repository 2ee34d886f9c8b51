"""Filters against the official sampler, and sampling against its definition."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file
from torch.testing import assert_close

from aimamba.ops.sampling.logits import guide, min_p_filter, sample, sample_categorical, top_k_filter, top_p_filter

VOCABULARY = 12


def some_logits(rows=6, *, seed=0, scale=2.0):
    return scale * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def evenly(count):
    """The midpoints of ``count`` equal parts of [0, 1): sampling at all of them counts every token exactly."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def frequencies(logits, count=20_000, **settings):
    tokens = sample(logits.expand(count, -1), evenly(count), **settings)
    return tokens.bincount(minlength=logits.shape[-1]) / count


def test_filters_equal_the_official_sampler(golden):
    tensors = load_file(golden / "sampler" / "io.safetensors")
    logits = tensors.pop("logits")
    assert len(tensors) == 16
    for key, expected in tensors.items():
        k, p = re.fullmatch(r"probs_k(\d+)_p([\d.]+)", key).groups()
        for settings in ((int(k), float(p)), (torch.full((4,), int(k)), torch.full((4,), float(p)))):
            got = top_p_filter(top_k_filter(logits, settings[0]), settings[1]).softmax(dim=-1)
            assert torch.equal(got == 0, expected == 0), key
            assert_close(got, expected, rtol=1e-5, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")


def test_top_k_keeps_k_and_what_ties():
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    kept = top_k_filter(logits, 1).isfinite()
    assert kept.tolist() == [[False, True, False, True, False], [True, False, False, False, False]]
    assert top_k_filter(logits, 3).isfinite().sum(dim=-1).tolist() == [3, 3]
    for everything in (0, 5, 99):
        assert torch.equal(top_k_filter(logits, everything), logits)


@given(st.integers(0, 2**16), st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, p):
    logits = some_logits(1, seed=seed).double()
    probabilities, order = logits.softmax(dim=-1)[0].sort(descending=True)
    kept = top_p_filter(logits, p).isfinite()[0][order]
    count = int(kept.sum())
    assert kept[:count].all(), "the likeliest tokens are kept"
    assert float(probabilities[:count].sum()) >= p - 1e-9
    assert float(probabilities[: count - 1].sum()) < p + 1e-9


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.25, 2),
        (0.25 + 2**-20, 3),
        (0.125, 1),
        (0.5, 4),
        (0.5 - 2**-20, 4),
        (0.75, 6),
        (0.875, 7),
        (0.875 + 2**-20, 8),
    ],
)
def test_top_p_exactly_at_its_boundary(p, kept, per_row):
    """Eight tokens of probability 1/8: every sum of them, p and 1 - p are exact in float32."""
    logits = torch.tensor([[0.0, -torch.inf, *[0.0] * 7]])
    assert logits.softmax(dim=-1)[0].unique().tolist() == [0.0, 0.125]
    got = top_p_filter(logits, torch.tensor([p]) if per_row else p)
    assert int(got.isfinite().sum()) == kept


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.0, [1]),
        (2**-20, [1]),
        (0.5 - 2**-20, [1]),
        (0.5 + 2**-20, [1, 3]),
        (0.75 - 2**-20, [1, 3]),
        (0.75 + 2**-20, [0, 1, 3]),
        (1.0, [0, 1, 2, 3, 4]),
        (2.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_near_its_boundaries(p, kept, per_row):
    logits = torch.tensor([[0.125, 0.5, 0.0625, 0.25, 0.0625]]).log()
    got = top_p_filter(logits, torch.tensor([p]) if per_row else p)
    assert got.isfinite()[0].nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("p", [1.0, torch.tensor([1.0])], ids=["number", "per row"])
def test_top_p_of_one_keeps_even_what_float32_cannot_resolve(p):
    logits = torch.tensor([[0.0, -300.0]])
    assert logits.softmax(dim=-1)[0, 1] == 0
    assert torch.equal(top_p_filter(logits, p), logits)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (1, [[1, 3], [0]]),
        (2, [[1, 3], [0, 1]]),
        (3, [[1, 3, 4], [0, 1, 2]]),
        (4, [[1, 2, 3, 4], [0, 1, 2, 3]]),
        (5, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        (6, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        (0, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
    ],
)
def test_top_k_at_every_boundary(k, kept, per_row):
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    got = top_k_filter(logits, torch.full((2,), k) if per_row else k)
    assert [row.isfinite().nonzero().flatten().tolist() for row in got] == kept
    finite = got.isfinite()
    assert torch.equal(got[finite], logits[finite]), "what is kept does not change"


def test_filters_leave_their_input_alone():
    logits = some_logits()
    before = logits.clone()
    sample(logits, torch.rand(6), temperature=0.5, top_k=3, top_p=0.5)
    assert torch.equal(logits, before)


def test_a_setting_per_row_equals_the_number_for_that_row():
    logits, uniform = some_logits(8), torch.rand(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    settings = {
        "temperature": [1.0, 0.5, 2.0, 0.0, 1.0, 0.7, 1.5, 0.0],
        "top_k": [0, 3, 1, 5, VOCABULARY, 99, 2, 0],
        "top_p": [1.0, 0.9, 0.5, 0.3, 0.05, 1.0, 0.98, 0.5],
    }
    together = sample(logits, uniform, **{name: torch.tensor(values) for name, values in settings.items()})
    for row in range(8):
        one = {name: values[row] for name, values in settings.items()}
        assert sample(logits[row : row + 1], uniform[row : row + 1], **one).item() == together[row].item(), one


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_divides_the_logits(temperature):
    logits = some_logits(1)
    expected = (logits / temperature).softmax(dim=-1)[0]
    assert (frequencies(logits, temperature=temperature) - expected).abs().max() < 1e-4


def test_temperature_comes_before_the_filters():
    logits = some_logits(1)
    expected = top_p_filter(logits / 3, 0.8).softmax(dim=-1)[0]
    assert (frequencies(logits, temperature=3.0, top_p=0.8) - expected).abs().max() < 1e-4


def test_temperature_zero_takes_the_likeliest_token():
    logits = some_logits(50)
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits, uniform, temperature=0.0), logits.argmax(dim=-1))
    assert torch.equal(sample(logits, uniform, top_k=1), logits.argmax(dim=-1))
    assert torch.equal(sample(logits, uniform, top_p=1e-9), logits.argmax(dim=-1))


def test_narrow_logits_are_sampled_in_float32():
    logits = some_logits(200, scale=1.0).bfloat16()
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits, uniform, top_p=0.9), sample(logits.float(), uniform, top_p=0.9))


def test_guidance():
    conditional, unconditional = some_logits(3, seed=1), some_logits(3, seed=2)
    assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert_close(guide(conditional, unconditional, 0.0), unconditional)
    assert_close(guide(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional)
    rows = guide(conditional, unconditional, torch.tensor([0.0, 1.0, 3.0]))
    assert_close(rows[2], (3 * conditional - 2 * unconditional)[2])
    assert_close(rows[0], unconditional[0])


@given(
    hnp.arrays("float64", (3, 7), elements=st.one_of(st.just(0.0), st.floats(1e-6, 1.0))),
    hnp.arrays("float64", 3, elements=st.floats(0, 1, exclude_max=True)),
)
def test_sampling_inverts_the_cumulative_distribution(weights, uniform):
    weights[:, 3] = 0.5  # at least one token in every row
    probabilities = torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))
    sampled = sample_categorical(probabilities, torch.from_numpy(uniform))
    for row in range(3):
        token = int(sampled[row])
        assert probabilities[row, token] > 0
        below, upto = float(probabilities[row, :token].sum()), float(probabilities[row, : token + 1].sum())
        assert below - 1e-12 <= uniform[row] <= upto + 1e-12
        alone = sample_categorical(probabilities[row : row + 1], torch.from_numpy(uniform[row : row + 1]))
        assert int(alone) == token, "a row does not depend on its batch"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampling_at_both_ends(dtype):
    probabilities = torch.tensor([[0.0, 0.0, 0.2, 0.0, 0.8, 0.0], [0.1] * 5 + [0.5]], dtype=dtype)
    assert sample_categorical(probabilities, torch.zeros(2, dtype=dtype)).tolist() == [2, 0]
    almost = torch.full((2,), torch.nextafter(torch.tensor(1.0, dtype=dtype), torch.tensor(0.0, dtype=dtype)).item())
    assert sample_categorical(probabilities, almost.to(dtype)).tolist() == [4, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampling_at_the_boundary_between_tokens(dtype):
    """A token owns its interval of the cumulative distribution from its start, included, to its end, excluded."""
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.25], dtype=dtype)
    uniform = torch.tensor([0.0, 0.25 - 2**-24, 0.25, 0.75 - 2**-24, 0.75], dtype=torch.float64)
    assert sample_categorical(probabilities.expand(5, -1), uniform).tolist() == [0, 0, 2, 2, 3]


def test_sampling_even_at_one_gives_a_possible_token():
    assert sample_categorical(torch.tensor([[0.5, 0.5, 0.0]]), torch.ones(1)).item() == 1


def test_sampling_from_nan_stays_in_the_vocabulary():
    sampled = sample_categorical(torch.tensor([[0.25, torch.nan, 0.25], [0.0, 1.0, 0.0]]), torch.tensor([0.9, 0.9]))
    assert 0 <= sampled[0] < 3
    assert sampled[1] == 1, "the other rows are not affected"


def test_sampling_frequencies():
    probabilities = some_logits(1, seed=4).softmax(dim=-1)
    probabilities[0, 3] = 0
    probabilities /= probabilities.sum()
    count = 50_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    seen = sample_categorical(probabilities.expand(count, -1), uniform).bincount(minlength=VOCABULARY)
    expected = probabilities[0] * count
    assert seen[3] == 0
    possible = expected > 0
    chi_square = ((seen - expected).square()[possible] / expected[possible]).sum()
    assert chi_square < 29.6, "beyond the 0.999 quantile with 10 degrees of freedom"
    even = sample_categorical(probabilities.expand(count, -1), evenly(count)).bincount(minlength=VOCABULARY)
    assert (even - expected).abs().max() <= 1.1


def test_min_p_keeps_a_share_of_the_most_likely():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]]).log()
    assert min_p_filter(logits, 0.0) is logits
    assert (min_p_filter(logits, 0.29) > -torch.inf).tolist() == [[True, True, True, False], [True] * 4]
    each = min_p_filter(logits, torch.tensor([0.9, 0.0]))
    assert (each > -torch.inf).tolist() == [[True, False, False, False], [True] * 4]
    uniform = torch.tensor([0.999, 0.999], dtype=torch.float64)
    assert sample(logits, uniform, min_p=0.29).tolist() == [2, 3]
