"""What is given for the images of a batch, and the conditions of other images to contrast them with.

Shape letters: B batch, of which a process holds b rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from aimamba import distributed
from aimamba.data.codes import CaptionedBatch, CodeBatch

_NEIGHBOURS = 16  # rows after one that are compared with it


class Conditions(NamedTuple):
    """What is given for the images of a batch.

    Attributes:
        labels: Their classes (b,).
        captions: Of a generator that takes them, see ``aimamba.models.text``.
    """

    labels: Tensor
    captions: Tensor | None = None

    @classmethod
    def of(cls, batch: CodeBatch | CaptionedBatch) -> "Conditions":
        """Return those of a batch."""
        return cls(batch.labels, batch.captions if isinstance(batch, CaptionedBatch) else None)

    def without(self, bare: Tensor, mute: Tensor, *, null_class: int) -> "Conditions":
        """Return them without the classes of the rows ``bare`` and the captions of the rows ``mute``, (b,) booleans."""
        labels, captions = torch.where(bare, null_class, self.labels), self.captions
        if captions is None:
            return Conditions(labels)
        return Conditions(labels, captions.masked_fill(mute.view(-1, *[1] * (captions.ndim - 1)), 0))

    def and_of(self, other: "Conditions") -> "Conditions":
        """Return these conditions and those of further rows."""
        captions = None
        if self.captions is not None and other.captions is not None:
            captions = torch.cat([self.captions, other.captions])
        return Conditions(torch.cat([self.labels, other.labels]), captions)

    def others(self, bare: Tensor, mute: Tensor, *, alone: bool = False) -> tuple["Conditions", Tensor]:
        """Return for each row the condition of another image of the whole batch.

        It is that of the next row whose condition is another one, as far as it is seen: of a row that is trained
        without its class only the captions are compared. A row that is trained without both has no other, and a row
        with a caption none without. Nothing waits for the device.

        Args:
            bare: Rows that are trained without their class (b,).
            mute: Rows that are trained without a caption (b,).
            alone: Whether to look at the rows of this process only, which is no collective call.

        Returns:
            Conditions (b) as they are without anything left out, and which rows have found one (b,).
        """
        count = len(self.labels)
        share = (lambda rows: rows) if alone else distributed.gathered
        labels, captions = share(self.labels), None if self.captions is None else share(self.captions)
        first = 0 if alone else distributed.rank() * count
        own = first + torch.arange(count, device=labels.device)
        chosen, found = own, torch.zeros_like(bare)
        for further in range(1, min(len(labels), _NEIGHBOURS + 1)):
            place = (own + further) % len(labels)
            fits = ~bare & (labels[place] != self.labels)
            if captions is not None and self.captions is not None:
                theirs = captions[place].flatten(1)
                fits |= ~mute & (theirs != self.captions.flatten(1)).any(dim=1)
                fits &= mute | theirs.any(dim=1)
            chosen, found = torch.where(fits & ~found, place, chosen), found | fits
        return Conditions(labels[chosen], None if captions is None else captions[chosen]), found
