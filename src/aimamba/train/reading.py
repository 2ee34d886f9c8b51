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
from aimamba.train.generator import GeneratorTaskConfig


class Reading(NamedTuple):
    """How a generator reads captions.

    Attributes:
        text: Its config; None if it takes none.
        readers: The vocabulary or the frozen encoder's vectors, as ``GeneratorTask`` takes them.
    """

    text: TextConfig | None
    readers: tuple[Vocabulary | None, CaptionVectors | None]


def learn_to_read(
    text: TextConfig | None, train: CodeSet, task: GeneratorTaskConfig, source: str, log: Callable[[str], None]
) -> Reading:
    """Prepare the captions of a generator that knows none yet.

    Args:
        text: How it takes captions; the size of the vocabulary, or what a frozen encoder decides, is filled in.
        train: What it will be trained on.
        task: Names the frozen encoder, if there is one.
        source: Name of the images, for messages.
        log: Called with a line about each step that takes long.

    Raises:
        ConfigError: The images have no captions, or the encoder is not there.
        CheckpointError: The encoder is damaged.
    """
    if text is None:
        check(not task.text_encoder, "task.text_encoder reads captions, and this generator takes none: set model.text")
        return Reading(None, (None, None))
    check_captions("model.text", train.captions is not None, source)
    if task.text_encoder:
        encoder = SentenceEncoder.load(task.text_encoder)
        text = replace(text, vocabulary=0, features=encoder.width, encoder=encoder.fingerprint)
        return Reading(text, (None, _vectors(encoder, text, train, log)))
    check(text.features == 0, "model.text.features follows from the encoder: name that in task.text_encoder")
    vocabulary = Vocabulary.train(_texts(train), text.vocabulary)
    return Reading(replace(text, vocabulary=len(vocabulary)), (vocabulary, None))


def read_as(
    text: TextConfig,
    opened: Checkpoint,
    train: CodeSet,
    task: GeneratorTaskConfig,
    source: str,
    log: Callable[[str], None],
) -> Reading:
    """Prepare the captions of a generator that reads already, see ``learn_to_read``."""
    check_captions(opened.source, train.captions is not None, source)
    if not text.features:
        check(not task.text_encoder, f"{opened.source} has a vocabulary of its own; leave task.text_encoder out")
        return Reading(text, (saved_vocabulary(opened), None))
    encoder = SentenceEncoder.load(task.text_encoder or MINILM, fingerprint=text.encoder)
    return Reading(text, (None, _vectors(encoder, text, train, log)))


def check_captions(what: str, captioned: bool, source: str) -> None:
    """Check that images have the captions that ``what`` needs.

    Raises:
        ConfigError: They have none.
    """
    check(captioned, f"{what} is for images with captions, and {source} has none; see docs/captions.md")


def _vectors(encoder: SentenceEncoder, text: TextConfig, train: CodeSet, log: Callable[[str], None]) -> CaptionVectors:
    vectors = CaptionVectors(encoder, text.tokens)
    log("reading captions with the frozen sentence encoder; each is read once")
    vectors.prepare(_texts(train))
    return vectors


def _texts(train: CodeSet) -> Iterator[str]:
    captions = train.captions
    assert captions is not None
    return (one for index in range(len(captions)) for one in captions[index])
