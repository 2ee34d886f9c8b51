"""Keep every code in use."""

import pytest
import torch
from torch.nn import functional as F

from aimamba.train.codebook import CodebookUse


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def codebook():
    return F.normalize(torch.randn(8, 4, generator=rng(1)), dim=-1)


def latents(count, seed=2):
    return 3 * torch.randn(count, 4, generator=rng(seed))


def rows_taken(codebook, candidates):
    """Index of the latent that each codebook vector equals, or -1."""
    equal = (codebook[:, None] - F.normalize(candidates, dim=-1)).abs().amax(dim=-1) < 1e-6
    return [int(row.nonzero()[0]) if row.any() else -1 for row in equal]


def test_the_codebook_starts_from_the_data(codebook):
    use, candidates = CodebookUse(8), latents(20)
    use.revive(codebook, candidates, rng())
    taken = rows_taken(codebook, candidates)
    assert -1 not in taken
    assert len(set(taken)) == 8, "without repetition"
    assert torch.allclose(codebook.norm(dim=-1), torch.ones(8))
    assert torch.equal(use.use, torch.ones(8))


def test_no_more_codes_than_latents_move(codebook):
    before, use = codebook.clone(), CodebookUse(8)
    use.revive(codebook, latents(3), rng())
    assert sorted(rows_taken(codebook, latents(3))[:3]) == [0, 1, 2]
    assert torch.equal(codebook[3:], before[3:])
    assert use.use.tolist() == [1.0] * 3 + [0.0] * 5
    use.revive(codebook, latents(9, seed=3), rng())
    assert torch.equal(use.use, torch.ones(8)), "the others follow"
    assert rows_taken(codebook, latents(3)).count(-1) == 5


def test_codes_in_use_stay(codebook):
    before, use = codebook.clone(), CodebookUse(8)
    use.use.copy_(torch.tensor([1.0, 0.031, 0.029, 0.5, 0.0, 7.0, 1.0, 1.0]))
    use.revive(codebook, latents(20), rng())
    moved = (codebook != before).any(dim=-1).nonzero().flatten().tolist()
    assert moved == [2, 4]
    assert use.use[[2, 4]].tolist() == [1.0, 1.0]


def test_latents_are_chosen_by_the_given_generator(codebook):
    state = torch.random.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        results.append(codebook.clone())
        CodebookUse(8).revive(results[-1], latents(20), rng(seed))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_latents_that_are_not_finite_never_enter_the_codebook(codebook, value):
    before, use, candidates = codebook.clone(), CodebookUse(8), latents(20)
    candidates[::2, 1] = value
    for seed in range(20):
        use.use.zero_()
        use.revive(codebook, candidates, rng(seed))
        assert codebook.isfinite().all()
    assert set(rows_taken(codebook, candidates[1::2])) <= set(range(10))
    codebook.copy_(before)
    use.use.zero_()
    use.revive(codebook, torch.full((20, 4), value), rng())
    assert torch.equal(codebook, before)
    assert torch.equal(use.use, torch.zeros(8)), "still to be revived"


def test_the_running_use():
    use = CodebookUse(4)
    use.observe(torch.tensor([[0, 0], [0, 1]]))
    assert torch.allclose(use.use, torch.tensor([0.02 * 3, 0.02, 0, 0]))
    for _ in range(500):
        use.observe(torch.arange(4).repeat(3))
    assert torch.allclose(use.use, torch.ones(4), atol=1e-3), "1 is an equal share"


def test_a_code_that_is_never_used_is_dead_after_a_while(codebook):
    use = CodebookUse(8)
    use.revive(codebook, latents(20), rng())
    before, batches = codebook.clone(), 0
    while torch.equal(codebook, before):
        use.observe(torch.arange(7))
        use.revive(codebook, latents(20, seed=5), rng())
        batches += 1
    assert batches == 174  # 0.98 ** 174 < 0.03
    assert torch.equal(codebook[:7], before[:7])


def test_all_codes_are_used_after_a_few_revivals():
    candidates = F.normalize(torch.randn(64, 2, generator=rng()), dim=-1)
    codebook = F.normalize(torch.tensor([[1.0, 0.01]]).repeat(16, 1), dim=-1)  # all in one place
    use = CodebookUse(16)
    use.use.fill_(1.0)
    for step in range(600):
        use.revive(codebook, candidates, rng(step))
        codes = (candidates @ codebook.T).argmax(dim=-1)
        use.observe(codes)
    assert len(codes.unique()) == 16


def test_it_is_kept_in_checkpoints():
    use, other = CodebookUse(4), CodebookUse(4)
    use.observe(torch.tensor([1, 1, 3]))
    other.load_state_dict(use.state_dict())
    assert torch.equal(other.use, use.use)
    assert list(use.parameters()) == []
