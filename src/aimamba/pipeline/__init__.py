"""From class names to images: tokenizer, generator and class names in one object."""

from aimamba.pipeline.card import ModelCard
from aimamba.pipeline.drawing import Preview, Progress
from aimamba.pipeline.loading import open_tokenizer, saved_class_names
from aimamba.pipeline.pipeline import Pipeline
from aimamba.pipeline.prompts import Prompt
from aimamba.pipeline.scoring import Score

__all__ = ["ModelCard", "Pipeline", "Preview", "Progress", "Prompt", "Score", "open_tokenizer", "saved_class_names"]
