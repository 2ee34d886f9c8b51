"""The least time that a figure can take: bytes that must move and operations that must be done, at measured rates.

A floor is no prediction. It counts what no implementation of the same arithmetic avoids and takes both rates at their
best: ``max(bytes / read bandwidth, operations / matrix rate)``.

Shape letters: L tokens of an image, D width, E inner width, H heads, N state size, Q chunk length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One way to remember a row's past.

    Attributes:
        state_bytes: Bytes of fixed size, which every token reads and writes.
        state_operations: Operations that a token spends on them.
        cache_bytes: Bytes that every token adds, and every token from it on reads.
        cache_operations: Operations that every token from it on spends on them.
    """

    state_bytes: int = 0
    state_operations: int = 0
    cache_bytes: int = 0
    cache_operations: int = 0

    def bytes(self, seen: float) -> float:
        """Bytes that one token of one row moves when it reads ``seen`` places of the cache."""
        return 2 * self.state_bytes + self.cache_bytes * (seen + 1)

    def operations(self, seen: float) -> float:
        """Operations of one token of one row."""
        return self.state_operations + self.cache_operations * seen


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a generator must do, counted from its shape.

    Attributes:
        matrices: Numbers in the matrices that every token is multiplied with, the output head among them.
        once: Numbers in the matrices that an image needs once: all that depends on the class alone.
        memories: Ways to remember the past that compute the same; the one that moves fewest bytes counts.
        mixing: Operations a token between tokens in the parallel form, forward, that are matrix products.
    """

    matrices: int
    once: int = 0
    memories: tuple[Memory, ...] = (Memory(),)
    mixing: int = 0

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Work":
        """Read what ``dataclasses.asdict`` made of it."""
        return cls(**{**content, "memories": tuple(Memory(**memory) for memory in content["memories"])})

    def memory(self, seen: float) -> Memory:
        """The way that moves fewest bytes."""
        return min(self.memories, key=lambda memory: memory.bytes(seen))


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


def sampling_bytes(work: Work, dtype: str, *, rows: int, tokens: int, seen: float | None = None) -> float:
    """Bytes that one token moves.

    Args:
        work: What the model does.
        dtype: Of the matrices.
        rows: Rows in the batch, two a guided image.
        tokens: Codes of an image, which share what it needs once.
        seen: Places of a cache that the token reads; the mean over an image, (L + 1) / 2, when absent.
    """
    seen = (tokens + 1) / 2 if seen is None else seen
    return WEIGHT_BYTES[dtype] * (work.matrices + work.once / tokens) + rows * work.memory(seen).bytes(seen)


def sampling_operations(work: Work, *, rows: int, tokens: int, seen: float | None = None) -> float:
    """Operations of one token, arguments as ``drawing_bytes``; a multiplication and an addition are two."""
    seen = (tokens + 1) / 2 if seen is None else seen
    return rows * (2 * (work.matrices + work.once / tokens) + work.memory(seen).operations(seen))


def sampling_floor(
    work: Work, dtype: str, ceilings: Mapping[str, Any], *, rows: int, tokens: int, seen: float | None = None
) -> Floor:
    """The floor of one token, arguments as ``drawing_bytes``.

    ``ceilings`` holds ``bytes_per_second`` and, by dtype, ``operations_per_second``.
    """
    moved = sampling_bytes(work, dtype, rows=rows, tokens=tokens, seen=seen)
    done = sampling_operations(work, rows=rows, tokens=tokens, seen=seen)
    rate = ceilings["operations_per_second"].get(dtype)
    return Floor(moved, done, moved / ceilings["bytes_per_second"], done / rate if rate else None)


def training_operations(work: Work, *, images: int, tokens: int, mixing: bool = False) -> float:
    """Matrix operations of a forward and a backward pass: three products for every one forward.

    Args:
        work: What the model does.
        images: Sequences in the batch.
        tokens: Their length.
        mixing: Whether to count the products between tokens too, which depend on the form chosen for them.
    """
    a_token = 2 * work.matrices + (work.mixing if mixing else 0)
    return 3.0 * images * (tokens * a_token + 2 * work.once)


def ssd_mixing(*, inner: int, state_size: int, chunk: int) -> int:
    """Matrix operations a token of one SSD layer in chunks: C B^T and its product with x, state in, state out."""
    return 2 * chunk * (state_size + inner) + 4 * inner * state_size


def attention_mixing(*, width: int, tokens: int) -> int:
    """Matrix operations a token of one causal attention layer: half of Q K^T and of its product with V."""
    return 2 * width * (tokens + 1)


def mamba_memories(
    *, blocks: int, inner: int, heads: int, state_size: int, conv_width: int, narrow: int
) -> tuple[Memory, Memory]:
    """What Mamba-2 may remember: the state (E N numbers, float32), or all x and B so far in the dual form.

    Both keep the last inputs of the convolution. The state takes five operations a number: times its decay, plus its
    input times B, times C, summed. The dual form takes two for every number of x and B, and three for every head.

    Args:
        blocks: Layers.
        inner: E.
        heads: H; the dual form keeps one float32 weight for each head and token.
        state_size: N.
        conv_width: Taps.
        narrow: Bytes of a number in the dtype of the matrix products.
    """
    window = narrow * (conv_width - 1) * (inner + 2 * state_size)
    state = inner * state_size
    return (
        Memory(state_bytes=blocks * (4 * state + window), state_operations=blocks * 5 * state),
        Memory(
            state_bytes=blocks * window,
            cache_bytes=blocks * (narrow * (inner + state_size) + 4 * heads),
            cache_operations=blocks * (2 * (inner + state_size) + 3 * heads),
        ),
    )


def attention_memories(*, layers: int, width: int, narrow: int) -> tuple[Memory]:
    """What attention remembers: keys and values."""
    return (Memory(cache_bytes=layers * 2 * width * narrow, cache_operations=layers * 4 * width),)
