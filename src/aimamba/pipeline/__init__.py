"""From class names to images: tokenizer, generator and class names in one object."""

from aimamba.pipeline.loading import open_tokenizer, saved_class_names
from aimamba.pipeline.pipeline import Pipeline, Progress

__all__ = ["Pipeline", "Progress", "open_tokenizer", "saved_class_names"]
