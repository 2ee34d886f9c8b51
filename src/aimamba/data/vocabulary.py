"""The vocabulary of captions: byte-level byte-pair encoding, learned from a set's own captions.

Interface, which the text condition of a generator is built against::

    vocabulary = Vocabulary.train(captions, size=2048)      # from an iterable of texts
    vocabulary.save(folder / VOCABULARY_FILE)               # readable by the library ``tokenizers`` too
    vocabulary = Vocabulary.load(folder / VOCABULARY_FILE)
    ids, lengths = vocabulary.encode(["a rocket"], 32)      # (B, 32) int64, (B,) int64; 0 is padding
    len(vocabulary)                                         # ids are below it

Captions are normalised first: NFKC, lower case, runs of white space as one space. Every text can be encoded, as all 256
bytes are tokens; an empty one is all padding, which is the unconditional case.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from aimamba.config import check
from aimamba.documents import DocumentError, read_json
from aimamba.errors import CheckpointError, DataError
from aimamba.files import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING = 0
"""The id behind the end of a caption."""

_PADDING_TOKEN = "<pad>"  # nosec B105 - no merge leads to it, so no text is encoded as it
_SMALLEST, _LARGEST = 257, 65_536  # tokens: padding and all bytes
_SHOWN = 60  # characters of a caption in a message

# The file is a tokenizer.json. All but vocabulary and merges is the same in all of them: a file that says otherwise is
# refused, as patterns of strangers could be written to take for ever.
_NORMALIZER: dict[str, Any] = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFKC"},
        {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_FRAME: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": _NORMALIZER,
    "pre_tokenizer": _BYTES,
    "post_processor": None,
    "decoder": _BYTES,
}
_MODEL: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,  # nosec B105
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


class EncodedCaptions(NamedTuple):
    """Captions as ids.

    Attributes:
        ids: One row for each caption, padded with 0.
        lengths: Tokens of each caption.
    """

    ids: Int64[np.ndarray, "b p"]
    lengths: Int64[np.ndarray, " b"]


class TruncatedCaptionWarning(UserWarning):
    """A caption has more tokens than the model takes."""


class Vocabulary:
    """Tokens of captions; see the module."""

    def __init__(self, tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> None:
        """Make a vocabulary; users call ``train`` or ``load``.

        Args:
            tokens: All tokens by id, in the alphabet of byte-level encodings; the first is padding.
            merges: Which pairs of tokens become one, in this order.

        Raises:
            ValueError: They do not belong together.
        """
        ids = {token: number for number, token in enumerate(tokens)}
        if not _SMALLEST <= len(ids) == len(tokens) <= _LARGEST or tokens[PADDING] != _PADDING_TOKEN:
            raise ValueError(f"not {_SMALLEST} to {_LARGEST} different tokens that begin with {_PADDING_TOKEN}")
        made = {left + right for left, right in merges}
        if made | set(_alphabet()) | {_PADDING_TOKEN} != ids.keys() or _PADDING_TOKEN in made:
            raise ValueError("the tokens are not those of the bytes and of the merges")
        self._values = {**_FRAME, "model": {**_MODEL, "vocab": ids, "merges": [list(pair) for pair in merges]}}
        self._tokenizer = _make_tokenizer(self._values)
        self._size = len(tokens)
        self._warned = False

    @classmethod
    def train(cls, captions: Iterable[str], size: int = 2048) -> "Vocabulary":
        """Learn a vocabulary from captions; the same captions in any order give the same one.

        Args:
            captions: Texts; read once.
            size: Most tokens, padding and the 256 bytes included. Few captions give fewer.

        Raises:
            ConfigError: ``size`` is out of range.
            DataError: There is no caption with a character other than white space.
        """
        check(_SMALLEST <= size <= _LARGEST, f"a vocabulary has {_SMALLEST} to {_LARGEST:,} tokens, got {size}")
        from tokenizers import trainers  # noqa: PLC0415 - loaded only where there are captions

        learner = _make_tokenizer({**_FRAME, "model": {**_MODEL, "vocab": {}, "merges": []}})
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=[_PADDING_TOKEN], initial_alphabet=_alphabet(), show_progress=False
        )
        some = False

        def texts() -> Iterable[str]:
            nonlocal some
            for caption in captions:
                some = some or bool(caption.strip())
                yield encodable(caption)

        learner.train_from_iterator(texts(), trainer)
        if not some:
            raise DataError("there is no caption to learn a vocabulary from; give images that have some")
        model = json.loads(learner.to_str())["model"]
        merges = [(left, right) for left, right in model["merges"]]
        return cls(sorted(model["vocab"], key=model["vocab"].__getitem__), merges)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read a vocabulary that ``save`` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or not such a vocabulary.
        """
        path = Path(path)
        try:
            values = read_json(path)
            model = values.pop("model")
            ids, merges = model.pop("vocab"), model.pop("merges")
            if values != _FRAME or model != _MODEL:
                raise ValueError("it normalises or splits captions in another way")
            if list(ids.values()) != list(range(len(ids))):
                raise ValueError("the tokens are not in the order of their ids")
            return cls(list(ids), [(left + "", right + "") for left, right in merges])
        except OSError as error:
            raise CheckpointError(
                f"{path}: the vocabulary of the captions cannot be read ({error.strerror})"
            ) from error
        except (DocumentError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path}: not a vocabulary that aimamba wrote ({reason}); restore the file"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as a ``tokenizer.json``; the same vocabulary is the same bytes.

        Raises:
            OSError: The file cannot be written.
        """
        write_atomically(Path(path), lambda draft: draft.write_text(self._text(), encoding="utf-8"))

    def __len__(self) -> int:
        """Return the number of tokens, padding included: ids are below it."""
        return self._size

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same tokens and merges."""
        return isinstance(other, Vocabulary) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def fingerprint(self) -> str:
        """Return a SHA-256 of the tokens and merges."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def encode(self, captions: Sequence[str], length: int) -> EncodedCaptions:
        """Return the ids of captions.

        A caption of more tokens is cut; a ``TruncatedCaptionWarning`` names the first one.

        Args:
            captions: B texts, which may be empty.
            length: P, most tokens of a caption.

        Raises:
            ConfigError: ``length`` is below 1.
        """
        check(length >= 1, f"captions need a length of at least 1 token, got {length}")
        ids = np.full((len(captions), length), PADDING, np.int64)
        lengths = np.zeros(len(captions), np.int64)
        for row, caption in enumerate(captions):
            tokens = self._tokenizer.encode(encodable(caption)).ids
            if len(tokens) > length and not self._warned:
                self._warned = True
                start = caption if len(caption) <= _SHOWN else f"{caption[:_SHOWN]}..."
                warnings.warn(
                    TruncatedCaptionWarning(
                        f"the caption {start!r} has {len(tokens)} tokens and is cut after {length}, as are others"
                    ),
                    stacklevel=2,
                )
            lengths[row] = min(len(tokens), length)
            ids[row, : lengths[row]] = tokens[:length]
        return EncodedCaptions(ids, lengths)

    def decode(self, ids: Sequence[int] | Int64[np.ndarray, " p"]) -> str:
        """Return the normalised caption of some ids; padding is passed over.

        Raises:
            ValueError: An id is out of range.
        """
        kept = [int(number) for number in ids if number != PADDING]
        if any(not 0 < number < len(self) for number in kept):
            raise ValueError(f"ids must lie in 0 to {len(self) - 1}, got {min(kept)} to {max(kept)}")
        return str(self._tokenizer.decode(kept)).removeprefix(" ")

    def normalise(self, caption: str) -> str:
        """Return a caption as it is encoded, and decoded again."""
        return str(self._tokenizer.normalizer.normalize_str(encodable(caption)))

    def _text(self) -> str:
        return json.dumps(self._values, ensure_ascii=False, indent=1) + "\n"


def _make_tokenizer(values: dict[str, Any]) -> "Tokenizer":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns when processes that decode are forked
    from tokenizers import Tokenizer  # noqa: PLC0415 - loaded only where there are captions

    try:
        return Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # its own class, without a name
        raise ValueError(str(error)) from error


def _alphabet() -> list[str]:
    """Return the 256 characters that stand for the bytes."""
    from tokenizers.pre_tokenizers import ByteLevel  # noqa: PLC0415 - loaded only where there are captions

    return sorted(ByteLevel.alphabet())


def encodable(caption: str) -> str:
    """Return a text in which halves of surrogate pairs, which are no characters, are question marks."""
    return caption.encode("utf-8", "replace").decode()
