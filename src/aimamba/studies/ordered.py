"""A generator whose codes come in another order than raster: the order is applied in training and undone in drawing.

The generator itself does not know. Its weights, saved, are an ordinary model whose codes ``OrderedPipeline`` can draw.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from aimamba.data.codes import CodeSet
from aimamba.models import AiM, VQModel
from aimamba.pipeline import Pipeline
from aimamba.studies.scans import Order, grid_order, inverse
from aimamba.train.generator import GeneratorTask


class OrderedPipeline(Pipeline):
    """A pipeline whose generator gives codes in an order of its own."""

    def __init__(self, tokenizer: VQModel, generator: AiM, class_names: Sequence[str], order: str) -> None:
        """Put the parts together; ``order`` is one of ``aimamba.studies.scans.ORDERS``."""
        super().__init__(tokenizer, generator, class_names)
        self._places = torch.from_numpy(inverse(grid_order(order, self.grid)))

    def decode(self, codes: Int[Tensor, "b l"]) -> UInt8[Tensor, "b 3 s s"]:
        """Put the codes back into raster order and decode them."""
        return super().decode(codes[:, self._places.to(codes.device)])


class OrderedTask(GeneratorTask):
    """Training of a generator on codes that ``reordered`` gave; its sample sheets show them in their places."""

    def __init__(self, *arguments: Any, order: str, **options: Any) -> None:
        """Take what ``GeneratorTask`` takes, and the name of the order."""
        super().__init__(*arguments, **options)
        self._order = order

    def pipeline(self, model: AiM) -> Pipeline:
        """Put ``model``, the tokenizer and the order together."""
        tokenizer = self.tokenizer.to(model.word_embedding.weight.device)
        return OrderedPipeline(tokenizer, model, self.class_names, self._order)


def reordered(codes: CodeSet, order: Order) -> CodeSet:
    """The same codes in another order, copied into memory."""
    return CodeSet([shard[:, :, order] for shard in codes.shards], codes.labels)
