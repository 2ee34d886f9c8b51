"""Generators that depend on every bit of a seed."""

import pytest
import torch

from aimamba.errors import ConfigError
from aimamba.seeds import seeded


def numbers(generator):
    return torch.rand(8, generator=generator).tolist()


@pytest.mark.parametrize("seed", [0, 1, 1234, 2**31, 2**32 - 1])
def test_small_seeds_are_those_of_torch(seed):
    assert numbers(seeded(seed)) == numbers(torch.Generator().manual_seed(seed))


def test_every_bit_counts():
    for seed in (0, 1, 2**40 + 5):
        found = {tuple(numbers(seeded(seed ^ (1 << bit)))) for bit in range(64)} | {tuple(numbers(seeded(seed)))}
        assert len(found) == 65


def test_neighbours_never_collide():
    assert len({seeded(2**40 + offset).initial_seed() for offset in range(2000)}) == 2000


@pytest.mark.parametrize("seed", [-1, 2**64, 10**5000], ids=["negative", "large", "huge"])
def test_seeds_out_of_range(seed):
    with pytest.raises(ConfigError, match=r"a seed must be in \[0, 2\^64\), got "):
        seeded(seed)
