"""The least time that a figure can take: bytes that must move and operations that must be done, at measured rates.

A floor is no prediction. It counts what no implementation of the same arithmetic avoids and takes both rates at their
best: ``max(bytes / read bandwidth, operations / matrix rate)``.

Shape letters: L tokens of a picture, D width, E inner width, N state size, Q chunk length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

STATE_OPERATIONS = 5  # a number: times its decay, input times B, their sum; times C, summed


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a generator must do, counted from its shape.

    Attributes:
        matrices: Numbers in the matrices that every token is multiplied with, the output head among them.
        once: Numbers in the matrices that a picture needs once: all that depends on the class alone.
        state_bytes: Bytes a row remembers at a fixed size; every token reads and writes them.
        state_operations: Operations a token spends on them.
        cache_bytes: Bytes that every token adds to a row's cache; every later token reads them.
        cache_operations: Operations that every later token spends on them.
        mixing: Operations a token between tokens in the parallel form, forward, that are matrix products.
    """

    matrices: int
    once: int = 0
    state_bytes: int = 0
    state_operations: int = 0
    cache_bytes: int = 0
    cache_operations: int = 0
    mixing: int = 0


@dataclass(frozen=True)
class Floor:
    """The least seconds, and what they come from.

    Attributes:
        bytes: Bytes that must move.
        operations: Operations that must be done.
        bytes_seconds: The first at the measured bandwidth.
        operations_seconds: The second at the measured rate; None where that rate was not measured.
    """

    bytes: float
    operations: float
    bytes_seconds: float
    operations_seconds: float | None

    @property
    def seconds(self) -> float:
        """The floor."""
        return max(self.bytes_seconds, self.operations_seconds or 0.0)

    @property
    def bound(self) -> str:
        """Which of the two it is."""
        return "bytes" if self.bytes_seconds >= (self.operations_seconds or 0.0) else "operations"


def drawing_bytes(work: Work, dtype: str, *, rows: int, tokens: int, seen: float | None = None) -> float:
    """Bytes that one token moves.

    Args:
        work: What the model does.
        dtype: Of the matrices.
        rows: Rows in the batch, two a guided picture.
        tokens: Codes of a picture, which share what it needs once.
        seen: Places of a cache that the token reads; the mean over a picture, (L + 1) / 2, when absent.
    """
    weights = WEIGHT_BYTES[dtype] * (work.matrices + work.once / tokens)
    cache = work.cache_bytes * ((tokens + 1) / 2 if seen is None else seen)
    return weights + rows * (2 * work.state_bytes + cache + work.cache_bytes)


def drawing_operations(work: Work, *, rows: int, tokens: int, seen: float | None = None) -> float:
    """Operations of one token, arguments as ``drawing_bytes``; a multiplication and an addition are two."""
    cache = work.cache_operations * ((tokens + 1) / 2 if seen is None else seen)
    return rows * (2 * (work.matrices + work.once / tokens) + work.state_operations + cache)


def drawing_floor(
    work: Work, dtype: str, ceilings: Mapping[str, Any], *, rows: int, tokens: int, seen: float | None = None
) -> Floor:
    """The floor of one token, arguments as ``drawing_bytes``.

    ``ceilings`` holds ``bytes_per_second`` and, by dtype, ``operations_per_second``.
    """
    moved = drawing_bytes(work, dtype, rows=rows, tokens=tokens, seen=seen)
    done = drawing_operations(work, rows=rows, tokens=tokens, seen=seen)
    rate = ceilings["operations_per_second"].get(dtype)
    return Floor(moved, done, moved / ceilings["bytes_per_second"], done / rate if rate else None)


def training_operations(work: Work, *, pictures: int, tokens: int, mixing: bool = False) -> float:
    """Matrix operations of a forward and a backward pass: three products for every one forward.

    Args:
        work: What the model does.
        pictures: Sequences in the batch.
        tokens: Their length.
        mixing: Whether to count the products between tokens too, which depend on the form chosen for them.
    """
    a_token = 2 * work.matrices + (work.mixing if mixing else 0)
    return 3.0 * pictures * (tokens * a_token + 2 * work.once)


def ssd_mixing(*, inner: int, state_size: int, chunk: int) -> int:
    """Matrix operations a token of one SSD layer in chunks: C B^T and its product with x, state in, state out."""
    return 2 * chunk * (state_size + inner) + 4 * inner * state_size


def attention_mixing(*, width: int, tokens: int) -> int:
    """Matrix operations a token of one causal attention layer: half of Q K^T and of its product with V."""
    return 2 * width * (tokens + 1)
