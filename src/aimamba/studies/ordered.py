"""A generator whose sequences are in another scan order than raster.

The order is applied to the training codes and undone before decoding; the generator itself does not know it. A saved
generator is an ordinary model, and ``OrderedPipeline`` decodes its samples.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from aimamba.data.codes import CodeSet
from aimamba.data.vocabulary import Vocabulary
from aimamba.models import AiM, VQModel
from aimamba.pipeline import Pipeline
from aimamba.studies.scans import ScanOrder, inverse_order, scan_order
from aimamba.train.generator import GeneratorTask


class OrderedPipeline(Pipeline):
    """A pipeline whose generator produces tokens in a given scan order."""

    def __init__(
        self,
        tokenizer: VQModel,
        generator: AiM,
        class_names: Sequence[str],
        vocabulary: Vocabulary | None = None,
        *,
        order: str,
        **options: Any,
    ) -> None:
        """Combine the parts.

        Args:
            tokenizer: Decodes the codes.
            generator: Produces the tokens of an image in ``order``.
            class_names: Names of the generator's classes.
            vocabulary: Of a generator that takes captions.
            order: One of ``aimamba.studies.scans.SCAN_ORDERS``.
            options: Further arguments of ``Pipeline``.
        """
        super().__init__(tokenizer, generator, class_names, vocabulary, **options)
        self._inverse = torch.from_numpy(inverse_order(scan_order(order, self.grid)))

    def decode(self, codes: Int[Tensor, "b l"]) -> UInt8[Tensor, "b 3 s s"]:
        """Put codes (B, L) back into raster order and decode them to images (B, 3, S, S)."""
        return super().decode(codes[:, self._inverse.to(codes.device)])


class OrderedTask(GeneratorTask):
    """Training of a generator on codes from ``reorder``; sample sheets undo the order."""

    def __init__(self, *arguments: Any, order: str, **options: Any) -> None:
        """Take the arguments of ``GeneratorTask`` and the name of the scan order."""
        super().__init__(*arguments, **options)
        self._order = order

    def pipeline(self, model: AiM) -> Pipeline:
        """Return a pipeline of ``model``, the tokenizer and the order."""
        made = super().pipeline(model)
        return OrderedPipeline(
            made.tokenizer,
            made.generator,
            made.class_names,
            made.vocabulary,
            order=self._order,
            text_encoder=made.text_encoder,
        )


def reorder(codes: CodeSet, order: ScanOrder) -> CodeSet:
    """Return the same codes in another scan order, copied into memory."""
    return CodeSet(
        [shard[:, :, order] for shard in codes.shards],
        codes.labels,
        codebook_size=codes.codebook_size,
        captions=codes.captions,
    )
