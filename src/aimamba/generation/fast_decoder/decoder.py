"""The same images as ``VQModel.decode`` with fewer operations, for inference only.

On CPUs, a native kernel computes the convolutions if it supports the model (``aimamba.ops.conv.native``): with a
quarter of the products, and norms, swish and residuals in the same pass. Otherwise PyTorch computes them, channels
last, and each upsampling and the convolution after it become one convolution on the small grid (``folded``).

Shape letters: B batch, C channels, h w code grid or grid of a level, H W image.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aimamba.errors import CheckpointError
from aimamba.generation.fast_decoder import native as native_decoder
from aimamba.generation.fast_decoder.folded import fold_upsampling
from aimamba.generation.fast_decoder.native import NativeDecoder
from aimamba.generation.weight_versions import weight_versions
from aimamba.models.vq import VQModel

_BATCH_ON_CPU, _BATCH_ELSEWHERE = 1, 8  # on a CPU one image occupies all cores, and is the same in every batch


class FastDecoder:
    """Computes ``VQModel.decode`` from a copy of the model's weights.

    Attributes:
        is_native: Whether it uses the native kernel.
    """

    @torch.no_grad()
    def __init__(self, model: VQModel, *, native: bool = True) -> None:
        """Copy the decoder of ``model``. Without ``native``, PyTorch computes it on CPUs too."""
        on_cpu = model.codebook.device.type == "cpu"
        self._batch_size = _BATCH_ON_CPU if on_cpu else _BATCH_ELSEWHERE
        self._versions = weight_versions(model)
        vectors = F.normalize(model.codebook, dim=-1)[..., None, None]  # (V, E, 1, 1)
        self._table = model.from_code(vectors).flatten(1)  # (V, z_channels)
        self.is_native = native and native_decoder.unsupported(model.decoder) is None
        self._decoder: Callable[[Tensor], Tensor] = (
            NativeDecoder(model.decoder) if self.is_native else fold_upsampling(model.decoder)
        )

    def matches(self, model: VQModel) -> bool:
        """Whether ``model`` still has the weights that were copied, as far as ``weight_versions`` can tell."""
        return self._versions == weight_versions(model)

    @torch.no_grad()
    def __call__(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
        """Convert codes to images, a few at a time, so that working memory does not grow with the batch.

        Values may lie slightly outside [-1, 1].

        Raises:
            CheckpointError: The images contain NaN or infinity, as with damaged weights.
        """
        images = torch.cat([self._decode(part) for part in codes.split(self._batch_size)])
        if not bool(images.isfinite().all()):
            raise CheckpointError(
                "the tokenizer's images contain NaN or infinity: its weights are damaged, or its dtype is too narrow"
            )
        return images

    def _decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
        return self._decoder(F.embedding(codes, self._table).movedim(-1, 1))  # channels last, (B, C, h, w)
