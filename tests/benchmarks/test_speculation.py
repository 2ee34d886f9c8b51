"""Speculative sampling: several tokens at once, rollback, and images and distributions that drafts do not change."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from aimamba.generation import SamplingConfig, generate
from benchmarks.speculation import Tables, accepts, feed, keep, speculate

DUAL, STATE = {"num_tokens": 16}, {"num_tokens": 36, "state_size": 16}  # what a mixer remembers


def small(make_aim, **settings):
    sizes = {"width": 32, "num_blocks": 2, "state_size": 16, "head_width": 16, "vocab_size": 12}
    return make_aim(dtype=torch.float64, **(sizes | settings))


def assert_same(state, other, **bounds):
    for name, tensor in state.tensors().items():
        assert_close(tensor, other.tensors()[name], msg=lambda text, name=name: f"{name}: {text}", **bounds)


@pytest.mark.parametrize("shape", [DUAL, STATE], ids=["dual", "state"])
@torch.no_grad()
def test_several_tokens_at_once_equal_steps_and_what_is_not_kept_leaves_no_trace(make_aim, shape):
    model = small(make_aim, decode_position_shift=1, **shape)
    generator = torch.Generator().manual_seed(0)
    fed, stepped = model.init_state(3), model.init_state(3)
    assert ("ssm" in fed.mixers[0]) == (shape is STATE)
    for state in (fed, stepped):
        model.step(torch.tensor([0, 1, model.condition.null_class]), state)
    while int(fed.position.max()) + 4 < model.config.num_tokens:
        codes = torch.randint(model.config.vocab_size, (3, 4), generator=generator)
        kept = torch.randint(1, 5, (3,), generator=generator)  # another number in each row
        logits, trail = feed(model, codes, fed)
        keep(fed, trail, kept)
        alone = []
        for row in range(3):
            one = stepped.select(torch.tensor([row]))
            for t in range(int(kept[row])):
                expected = model.step(codes[row, t : t + 1], one)
                assert_close(logits[row, t], expected[0], rtol=0, atol=1e-10)
            alone.append(one)
        stepped = alone[0].join(alone[1:])
        assert_same(fed, stepped, rtol=0, atol=1e-10)


@torch.no_grad()
def test_rollback_is_exact_to_the_bit(make_aim):
    model = small(make_aim, **DUAL)
    states = [model.init_state(2) for _ in range(2)]
    for state in states:
        model.step(torch.tensor([0, 1]), state)
    drafts = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 6]]), torch.tensor([[1, 2, 9, 9], [1, 2, 0, 0]])
    for state, codes in zip(states, drafts, strict=True):
        _, trail = feed(model, codes, state)
        keep(state, trail, torch.tensor([2, 2]))
    assert_same(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.8, top_k=6, cfg_scale=2.0),
        SamplingConfig(top_p=0.9, cfg_scale=1.5, cfg_schedule="linear", cfg_end=0.5, temperature_end=0.5),
    ],
    ids=["plain", "guided", "schedules"],
)
def test_images_are_those_of_plain_sampling(make_aim, config):
    model = small(make_aim, **DUAL)
    labels, seeds = torch.tensor([0, 1, 2]), [5, 6, 7]
    *_, expected = generate(model, labels, config, seeds=seeds, engine="plain")
    known = [list(image) for image in expected.tolist()]

    def half_right(label, codes):
        return (known[label][len(codes)] + (len(codes) % (label + 2) == 0)) % model.config.vocab_size

    found = speculate(model, labels, config, half_right, seeds=seeds, width=4)
    assert torch.equal(found.codes, expected)
    assert len(set(found.steps)) > 1, "images must accept different numbers of drafts"
    assert max(found.steps) < model.config.num_tokens - 1


def chi_square(counts, probabilities):
    """Standard deviations from the mean of a chi-square statistic of equal distributions."""
    expected = probabilities * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (len(counts) - 1)) / (2 * (len(counts) - 1)) ** 0.5)


@torch.no_grad()
def test_distribution_is_the_models_whatever_is_drafted(make_aim):
    model = small(make_aim, num_tokens=4, vocab_size=2)
    images = torch.tensor(list(itertools.product(range(2), repeat=4)))
    logits = model(images[:, :-1], torch.zeros(len(images), dtype=torch.long))
    exact = (logits / 4).log_softmax(dim=-1).gather(2, images[:, :, None]).sum(dim=(1, 2)).exp()
    assert exact.max() > 2 * exact.min(), "the model must not be uniform"
    count, config = 400, SamplingConfig(temperature=4.0)
    labels = torch.zeros(count, dtype=torch.long)
    found = speculate(model, labels, config, lambda label, codes: 1, seeds=range(count), width=3)
    counts = torch.bincount((found.codes * torch.tensor([8, 4, 2, 1])).sum(dim=1), minlength=16)
    assert abs(chi_square(counts, exact)) < 4
    assert chi_square(counts, exact.flip(0)) > 4, "the test must see another distribution"


def test_the_usual_rule_keeps_the_distribution():
    generator = torch.Generator().manual_seed(1)
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]).double(), torch.tensor([0.1, 0.3, 0.2, 0.4]).double()
    drafted = q.expand(20_000, 4).multinomial(1, generator=generator).squeeze(-1)
    codes, accepted = accepts(p.expand(20_000, 4), q.expand(20_000, 4), drafted, generator)
    assert abs(chi_square(torch.bincount(codes, minlength=4)[:3], p[:3])) < 4
    assert not (codes == 3).any()
    assert abs(float(accepted.double().mean()) - float(torch.minimum(p, q).sum())) < 0.02


def test_tables_guess_what_followed():
    images = [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 2, 1]]
    tables = Tables(images, [0, 0, 1], columns=2, vocabulary=4)
    assert [tables.guess(0, images[0][:t]) for t in range(4)] == images[0]
    assert tables.guess(1, [0, 2, 2]) == 1
    distribution = tables.distribution(0, [3, 3])  # never seen
    assert_close(distribution.sum(), torch.tensor(1.0).double())
    assert bool((distribution > 0).all())
