"""Tiny generators that are fine-tuned beside a frozen copy, and their images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from aimamba.data.codes import CodeSet
from aimamba.data.vocabulary import Vocabulary
from aimamba.models import AiM, VQModel
from aimamba.models.text import TextConfig
from aimamba.pipeline import Pipeline
from aimamba.train.frozen import FrozenCopyTask
from aimamba.train.generator_settings import GeneratorTaskConfig

KINDS = ("classes", "captions")
NAMES = ("thumbs", "clay", "moons", "cats", "dogs")
WORDS = ("red", "green", "blue", "tall", "round", "flat")


def tuned(
    make: type[FrozenCopyTask], kind: str, make_aim: Callable[..., AiM], make_vq: Callable[..., VQModel], **config
) -> FrozenCopyTask:
    """Make a task; images differ in their class or, all of one class, in their caption. No condition is left out."""
    generator, sets = np.random.default_rng(0), []
    reads = kind == "captions"
    for count in (12, 6):
        codes = generator.integers(0, 24, (count, 1, 9)).astype(np.uint16)
        labels = np.zeros(count, np.int64) if reads else np.arange(count) % 5
        sets.append(CodeSet(codes, labels, captions=[(f"a {WORDS[i % 6]} thing",) for i in range(count)]))
    vocabulary = Vocabulary.train([f"a {word} thing" for word in WORDS], 300) if reads else None
    text = TextConfig(tokens=8, width=32, blocks=1, vocabulary=len(vocabulary)) if reads else None
    all_given = {"label_dropout": 0.0, "class_dropout": 0.0, "caption_dropout": 0.0}
    settings = GeneratorTaskConfig(**{**all_given, **config})
    return make(make_aim(text=text), make_vq(), *sets, NAMES, settings, vocabulary, seed=3)


def save_given(folder: Path, make_aim: Callable[..., AiM], make_vq: Callable[..., VQModel]) -> AiM:
    """Save a pipeline in ``folder`` that knows the classes of the images, and one more; return its generator."""
    vq = make_vq()
    model = make_aim(num_tokens=64, num_classes=3, width=32, tokenizer=vq.code_fingerprint())
    Pipeline(vq, model, ("cats", "thumbs", "landscape")).save_pretrained(folder)
    return model
