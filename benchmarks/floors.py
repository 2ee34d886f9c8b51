"""Lower bounds on the time of a step, from the bytes it must move, the operations it must do, and measured rates.

A floor is a lower bound, not a prediction: ``max(bytes / read bandwidth, operations / matrix rate)``. It counts only
what every implementation of the same arithmetic has to do, and assumes that both rates are reached at once.

Shape letters: L tokens of an image, D width, E inner width, H heads, N state size, Q chunk length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Decoding state of one row, in one of its forms.

    Attributes:
        state_bytes: Bytes of the part with a fixed size, which every token reads and writes.
        state_operations: Operations per token on that part.
        cache_bytes: Bytes that every token appends; all later tokens read them.
        cache_operations: Operations per token on what one earlier token appended.
    """

    state_bytes: int = 0
    state_operations: int = 0
    cache_bytes: int = 0
    cache_operations: int = 0

    def bytes(self, seen: float) -> float:
        """Return the bytes that one token of one row moves when it reads ``seen`` positions of the cache."""
        return 2 * self.state_bytes + self.cache_bytes * (seen + 1)

    def operations(self, seen: float) -> float:
        """Return the operations of one token of one row."""
        return self.state_operations + self.cache_operations * seen


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of a generator, counted from its shape.

    Attributes:
        matrices: Parameters of the matrices that every token is multiplied by, including the output head.
        once: Parameters of the matrices used once per image: those that depend on the class alone.
        memories: Equivalent forms of the decoding state; the one that moves the fewest bytes counts.
        mixing: Operations per token of the matrix products between tokens, in the forward pass over whole sequences.
    """

    matrices: int
    once: int = 0
    memories: tuple[Memory, ...] = (Memory(),)
    mixing: int = 0

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Work":
        """Build from the mapping that ``dataclasses.asdict`` returned."""
        return cls(**{**content, "memories": tuple(Memory(**memory) for memory in content["memories"])})

    def memory(self, seen: float) -> Memory:
        """Return the form of the state that moves the fewest bytes."""
        return min(self.memories, key=lambda memory: memory.bytes(seen))


@dataclass(frozen=True)
class Floor:
    """A lower bound on the time, and where it comes from.

    Attributes:
        bytes: Bytes that must move.
        operations: Operations that must be done.
        bytes_seconds: Time of the bytes at the measured bandwidth.
        operations_seconds: Time of the operations at the measured rate; None if that rate was not measured.
    """

    bytes: float
    operations: float
    bytes_seconds: float
    operations_seconds: float | None

    @property
    def seconds(self) -> float:
        """The lower bound in seconds."""
        return max(self.bytes_seconds, self.operations_seconds or 0.0)

    @property
    def bound(self) -> str:
        """Which of the two sets it: ``bytes`` or ``operations``."""
        return "bytes" if self.bytes_seconds >= (self.operations_seconds or 0.0) else "operations"


def sampling_bytes(work: Work, dtype: str, *, rows: int, tokens: int, seen: float | None = None) -> float:
    """Return the bytes that one decoding step moves.

    Args:
        work: Work of the model.
        dtype: Dtype of the matrices.
        rows: Rows in the batch, two for each guided image.
        tokens: Tokens per image; they share what an image needs once.
        seen: Positions of a cache that the step reads. By default the mean over an image, (L + 1) / 2.
    """
    seen = (tokens + 1) / 2 if seen is None else seen
    return WEIGHT_BYTES[dtype] * (work.matrices + work.once / tokens) + rows * work.memory(seen).bytes(seen)


def sampling_operations(work: Work, *, rows: int, tokens: int, seen: float | None = None) -> float:
    """Return the operations of one step, with the arguments of ``sampling_bytes``; a multiply-add counts as two."""
    seen = (tokens + 1) / 2 if seen is None else seen
    return rows * (2 * (work.matrices + work.once / tokens) + work.memory(seen).operations(seen))


def sampling_floor(
    work: Work, dtype: str, ceilings: Mapping[str, Any], *, rows: int, tokens: int, seen: float | None = None
) -> Floor:
    """Return the floor of one step, with the arguments of ``sampling_bytes``.

    ``ceilings`` holds ``bytes_per_second`` and, by dtype, ``operations_per_second``.
    """
    moved = sampling_bytes(work, dtype, rows=rows, tokens=tokens, seen=seen)
    done = sampling_operations(work, rows=rows, tokens=tokens, seen=seen)
    rate = ceilings["operations_per_second"].get(dtype)
    return Floor(moved, done, moved / ceilings["bytes_per_second"], done / rate if rate else None)


def training_operations(work: Work, *, images: int, tokens: int, mixing: bool = False) -> float:
    """Return the matrix operations of a forward and a backward pass, three times those of the forward pass.

    Args:
        work: Work of the model.
        images: Sequences in the batch.
        tokens: Tokens per sequence.
        mixing: Also count the products between tokens, which depend on the form chosen for them.
    """
    per_token = 2 * work.matrices + (work.mixing if mixing else 0)
    return 3.0 * images * (tokens * per_token + 2 * work.once)


def training_bytes(parameters: int, *, updates: bool) -> float:
    """Return the bytes of the float32 weights that a training step moves.

    Forward and backward read them and write their gradient. With ``updates``, AdamW also reads the gradient, reads and
    writes the weights and both moments, and the moving average is read and written.

    Args:
        parameters: Number of all weights.
        updates: Whether the optimiser takes its step.
    """
    return 4.0 * parameters * (2 + (1 + 2 + 4 + 2 if updates else 0))


def training_floor(
    work: Work, dtype: str, ceilings: Mapping[str, Any], *, images: int, tokens: int, parameters: int, updates: bool
) -> Floor:
    """Return the floor of a training step, with the arguments of ``training_operations`` and ``training_bytes``.

    The products between tokens are not counted, because their number depends on the form chosen for them. What is kept
    for the backward pass is not counted either, because it can be computed again.
    """
    done = training_operations(work, images=images, tokens=tokens)
    moved = training_bytes(parameters, updates=updates)
    rate = ceilings["operations_per_second"].get(dtype)
    return Floor(moved, done, moved / ceilings["bytes_per_second"], done / rate if rate else None)


def ssd_mixing(*, inner: int, state_size: int, chunk: int) -> int:
    """Return the matrix operations per token of one SSD layer in chunks: C B^T, its product with x, both states."""
    return 2 * chunk * (state_size + inner) + 4 * inner * state_size


def attention_mixing(*, width: int, tokens: int) -> int:
    """Return the matrix operations per token of one causal attention layer: half of Q K^T and of its product with V."""
    return 2 * width * (tokens + 1)


def mamba_memories(
    *, blocks: int, inner: int, heads: int, state_size: int, conv_width: int, narrow: int
) -> tuple[Memory, Memory]:
    """Return the two forms of a Mamba-2 state: E N float32 numbers, or x and B of all earlier tokens (dual form).

    Both keep the last inputs of the convolution. The state form takes five operations per number: multiply by the
    decay, add the input times B, multiply by C, sum. The dual form takes two for every number of x and B, and three
    for every head.

    Args:
        blocks: Number of layers.
        inner: Inner width E.
        heads: Number of heads H; the dual form keeps one float32 weight for each head and token.
        state_size: State size N.
        conv_width: Taps of the convolution.
        narrow: Bytes per number in the dtype of the matrix products.
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
    """Return the state of attention: keys and values."""
    return (Memory(cache_bytes=layers * 2 * width * narrow, cache_operations=layers * 4 * width),)
