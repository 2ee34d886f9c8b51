"""What an image is to show, as users say it: a class, a mixture of classes, or a prompt.

Shape letters: B images, P prefix tokens, D width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral

from aimamba.config import check_text
from aimamba.data.vocabulary import encodable
from aimamba.errors import ConfigError

ClassName = str | int
"""A class by name or number, see ``aimamba.data.class_names``."""

Mixture = Mapping[ClassName, float | int]
"""Weights of classes, such as ``{"planets": 0.7, "clay": 0.3}``; they are scaled to the sum 1."""

LONGEST_PROMPT = 10_000
"""Characters of a prompt; what a generator does not read of it is cut off anyway."""


@dataclass(frozen=True)
class Prompt:
    """A sentence in place of a class, for generators that are trained on captions.

    Attributes:
        text: The sentence; an empty one says nothing.
        label: A class or a mixture beside it, for generators that know both.
    """

    text: str
    label: ClassName | Mixture | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(f"a prompt is a text, got {type(self.text).__name__}")
        check_text("a prompt", self.text)
        if len(self.text) > LONGEST_PROMPT:
            raise ConfigError(f"a prompt has at most {LONGEST_PROMPT:,} characters, got {len(self.text):,}")

    @classmethod
    def of_caption(cls, caption: str) -> "Prompt":
        """Return the prompt of a caption of an image set; of one that is longer than a prompt, its beginning."""
        return cls(encodable(caption[:LONGEST_PROMPT]))


Class = ClassName | Mixture | Prompt
"""What an image is to show."""


def listed(classes: Iterable[Class]) -> list[Class]:
    """Return classes as a list, also those of an iterator, which can be read once.

    Raises:
        ConfigError: It is a single class.
    """
    if isinstance(classes, str | Mapping | Prompt | Integral):
        raise ConfigError(f"expected a list of classes, got the single {classes!r}; write [{classes!r}]")
    return list(classes)
