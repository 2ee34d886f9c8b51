"""The tokenizer's decoder made ready to draw: the same images for less work. It cannot be trained.

On CPU convolutions go through a native kernel where it can be had (``aimamba.ops.conv.native.winograd``), which takes
a quarter of the products and does norms, swish and residuals on the way. Elsewhere they are PyTorch's, channels last in
memory, and a repetition followed by a convolution is one convolution on the small grid (see ``folded``).

Shape letters: B batch, C channels, h w code grid or grid of a level, H W image.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aimamba.errors import CheckpointError
from aimamba.generation.fast_decoder.folded import folded
from aimamba.generation.fast_decoder.native import NativeDecoder
from aimamba.generation.snapshot import versions
from aimamba.models.vq import VQModel

_ONCE_ON_CPU, _ONCE_ELSEWHERE = 1, 8  # on CPU one image keeps all cores busy, and is the same in every batch


class FastDecoder:
    """Draws the images that ``VQModel.decode`` draws, from a copy of its weights.

    Attributes:
        is_native: Whether the native kernel draws.
    """

    @torch.no_grad()
    def __init__(self, model: VQModel, *, native: bool = True) -> None:
        """Copy the decoder of ``model``; without ``native`` it stays with PyTorch."""
        on_cpu = model.codebook.device.type == "cpu"
        self._at_once = _ONCE_ON_CPU if on_cpu else _ONCE_ELSEWHERE
        self._versions = versions(model)
        vectors = F.normalize(model.codebook, dim=-1)[..., None, None]  # (V, E, 1, 1)
        self._table = model.from_code(vectors).flatten(1)  # (V, z_channels)
        kernel_decoder = NativeDecoder.make(model.decoder) if native and on_cpu else None
        self.is_native = kernel_decoder is not None
        self._decoder: Callable[[Tensor], Tensor] = kernel_decoder or folded(model.decoder)

    def matches(self, model: VQModel) -> bool:
        """Whether ``model`` still has the weights that were copied, as far as ``versions`` sees."""
        return self._versions == versions(model)

    @torch.no_grad()
    def __call__(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images of codes, drawn a few at a time: only they grow with the batch, not the memory to draw them.

        Values may lie a little outside [-1, 1].

        Raises:
            CheckpointError: They are no finite numbers, as damaged weights leave them.
        """
        images = torch.cat([self._draw(some) for some in codes.split(self._at_once)])
        if not bool(images.isfinite().all()):
            raise CheckpointError(
                "the tokenizer's images are no finite numbers: its weights are damaged, or its dtype is too narrow"
            )
        return images

    def _draw(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
        return self._decoder(F.embedding(codes, self._table).movedim(-1, 1))  # channels last, (B, C, h, w)
