"""Random generators of torch that depend on every bit of a seed."""

import hashlib

import torch

from aimamba.config import check

_WORD = 1 << 32
_LONGEST = 200  # bits of a number that a message shows


def seeded(seed: int) -> torch.Generator:
    """Return a generator on the CPU for a seed from 0 to 2^64 - 1.

    Torch's own seeding uses the lowest 32 bits alone, so that s and s + 2^32 would be the same. Here the upper bits
    change the lower ones. Seeds below 2^32 are those of torch, and equal upper bits never make two seeds equal.

    Raises:
        ConfigError: The seed is out of range.
    """
    check(0 <= seed < _WORD**2, f"a seed must be in [0, 2^64), got {shown(seed)}")
    high, low = divmod(seed, _WORD)
    if high:
        low ^= int.from_bytes(hashlib.blake2b(high.to_bytes(4, "big"), digest_size=4).digest(), "big") or 1
    return torch.Generator().manual_seed(low)


def shown(seed: int) -> str:
    """Return a seed for a message; Python refuses to print the digits of very large numbers."""
    return str(seed) if seed.bit_length() < _LONGEST else f"a number of {seed.bit_length()} bits"
