"""Names of the 1,000 classes of ImageNet, in label order."""

from functools import cache
from importlib.resources import files

IMAGENET_CLASSES = 1000


@cache
def imagenet_class_names() -> tuple[str, ...]:
    """Return the first WordNet lemma of each class's synset, made unique."""
    return tuple(_asset("imagenet_classes.txt").splitlines())


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """Return the WordNet id of each class's synset, such as ``n01440764``."""
    return tuple(_asset("imagenet_synsets.txt").split())


def _asset(name: str) -> str:
    return files("aimamba.assets").joinpath(name).read_text(encoding="utf-8")
