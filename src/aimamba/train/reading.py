"""What reads the captions of a generator in training: a vocabulary learned from them, or a frozen sentence encoder."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from aimamba.checkpoints.checkpoint import Checkpoint
from aimamba.config import check
from aimamba.data.codes import CodeSet
from aimamba.data.vocabulary import Vocabulary
from aimamba.models.text import TextConfig
from aimamba.networks.caption_vectors import CaptionVectors
from aimamba.networks.sentence import MINILM, SentenceEncoder
from aimamba.pipeline.loading import saved_vocabulary


class Learned(NamedTuple):
    """How a generator reads.

    Attributes:
        text: Its config, with the size of the vocabulary or what the frozen encoder decides; None if it does not read.
        readers: The vocabulary or the frozen encoder's vectors, as ``GeneratorTask`` takes them.
    """

    text: TextConfig | None
    readers: tuple[Vocabulary | None, CaptionVectors | None]


class Reading:
    """How a generator is to read, before its images are encoded, which takes long."""

    def __init__(
        self,
        text: TextConfig | None,
        text_encoder: str,
        *,
        captioned: bool,
        source: str,
        init: Checkpoint | None = None,
    ) -> None:
        """Check what can be checked, and load what reads already.

        Args:
            text: How the generator takes captions, if it does.
            text_encoder: Names the frozen encoder, see ``GeneratorTaskConfig``.
            captioned: Whether the images have captions.
            source: Name of the images, for messages.
            init: The generator that it starts from, if that reads already.

        Raises:
            ConfigError: The images have no captions, the settings do not fit, or the encoder is not there.
            CheckpointError: The encoder or the vocabulary is damaged, or another than ``init`` has.
        """
        self._text, self._vocabulary = text, None
        self._encoder: SentenceEncoder | None = None
        if text is None:
            check(not text_encoder, "task.text_encoder reads captions, and this generator takes none: set model.text")
            return
        what = "model.text" if init is None else init.source
        check(captioned, f"{what} is for images with captions, and {source} has none; see docs/captions.md")
        if init is None:
            free = bool(text_encoder) or text.features == 0
            check(free, "model.text.features follows from the encoder: name that in task.text_encoder")
            self._encoder = SentenceEncoder.load(text_encoder) if text_encoder else None
        elif text.features:
            self._encoder = SentenceEncoder.load(text_encoder or MINILM, fingerprint=text.encoder)
        else:
            check(not text_encoder, f"{init.source} has a vocabulary of its own; leave task.text_encoder out")
            self._vocabulary = saved_vocabulary(init)

    @property
    def text(self) -> TextConfig | None:
        """How the generator takes captions, as far as that is known; None if it takes none."""
        return self._text

    @property
    def encoder(self) -> SentenceEncoder | None:
        """The frozen encoder, if one reads."""
        return self._encoder

    def learn(self, train: CodeSet, log: Callable[[str], None]) -> Learned:
        """Learn the vocabulary from captions, or let the frozen encoder read them.

        Args:
            train: What the generator will be trained on.
            log: Called with a line about what takes long.
        """
        if self._text is None:
            return Learned(None, (None, None))
        if self._encoder is not None:
            log("reading captions with the frozen sentence encoder; each is read once")
            vectors = CaptionVectors(self._encoder, self._text.tokens)
            vectors.prepare(_texts(train))
            width, fingerprint = self._encoder.width, self._encoder.fingerprint
            text = replace(self._text, vocabulary=0, ngrams=0, features=width, encoder=fingerprint)
            return Learned(text, (None, vectors))
        vocabulary = self._vocabulary or Vocabulary.train(_texts(train), self._text.vocabulary)
        return Learned(replace(self._text, vocabulary=len(vocabulary)), (vocabulary, None))


def _texts(train: CodeSet) -> Iterator[str]:
    captions = train.captions
    assert captions is not None
    return (one for index in range(len(captions)) for one in captions[index])
