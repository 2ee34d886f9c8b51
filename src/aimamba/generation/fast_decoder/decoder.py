"""The same images as ``VQModel.decode`` with fewer operations, for inference only.

On CPUs, a native kernel computes the convolutions if it supports the model (``aimamba.ops.conv.native``): with a
quarter of the products, and norms, swish and residuals in the same pass. Otherwise PyTorch computes them, channels
last, and each upsampling and the convolution after it become one convolution on the small grid (``folded``). On CUDA
the launches for a full slice of images are recorded as a CUDA graph (``recorded``).

Shape letters: B batch, C channels, h w code grid or grid of a level, H W image.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aimamba.errors import CheckpointError
from aimamba.generation.capture import Record, capture
from aimamba.generation.fast_decoder import native as native_decoder
from aimamba.generation.fast_decoder.folded import fold_upsampling
from aimamba.generation.fast_decoder.native import NativeDecoder
from aimamba.generation.fast_decoder.recorded import RecordedDecoder
from aimamba.generation.weight_versions import weight_versions
from aimamba.inference import undisturbed
from aimamba.models.vq import VQModel

_BATCH_ON_CPU, _BATCH_ELSEWHERE = 1, 8  # on a CPU one image occupies all cores, and is the same in every batch


class Decoded(NamedTuple):
    """Images that may still be on their way through the device.

    Attributes:
        images: (B, 3, H, W). Values may lie slightly outside [-1, 1].
        finite: Whether they hold neither NaN nor infinity, as one boolean on the device; see ``check_finite``.
    """

    images: Tensor
    finite: Tensor


def check_finite(finite: Tensor) -> None:
    """Check ``Decoded.finite``. Waits for the device.

    Raises:
        CheckpointError: The images contain NaN or infinity, as with damaged weights.
    """
    if not bool(finite):
        raise CheckpointError(
            "the tokenizer's images contain NaN or infinity: its weights are damaged, or its dtype is too narrow"
        )


class FastDecoder:
    """Computes ``VQModel.decode`` from a copy of the model's weights.

    Attributes:
        is_native: Whether it uses the native kernel.
    """

    @torch.no_grad()
    @undisturbed()
    def __init__(self, model: VQModel, *, native: bool = True, record: Record | None = None) -> None:
        """Copy the decoder of ``model``.

        Args:
            model: The tokenizer, on any device and in any dtype; images are computed in its dtype.
            native: Use the native kernel on CPUs if it supports the model. Without, PyTorch computes there too.
            record: Converts a full slice's computation to one that repeats it. By default a CUDA graph on CUDA, and
                nothing elsewhere.
        """
        self._device = model.device
        batch_size = _BATCH_ON_CPU if self._device.type == "cpu" else _BATCH_ELSEWHERE
        self._versions = weight_versions(model)
        vectors = model.all_vectors()[..., None, None]  # (V, E, 1, 1)
        self._table = model.from_code(vectors).flatten(1)  # (V, z_channels)
        self.is_native = native and native_decoder.unsupported(model.decoder) is None
        self._decoder: Callable[[Tensor], Tensor] = (
            NativeDecoder(model.decoder) if self.is_native else fold_upsampling(model.decoder)
        )
        if record is None and self._device.type == "cuda":
            record = capture
        self._slices: Callable[[Tensor], Tensor]
        if record is None:
            self._slices = lambda codes: torch.cat([self._decode(part) for part in codes.split(batch_size)])
        else:
            self._slices = RecordedDecoder(self._decode, record, batch_size)

    def matches(self, model: VQModel) -> bool:
        """Whether ``model`` still has the weights that were copied, as far as ``weight_versions`` can tell."""
        return self._versions == weight_versions(model)

    def __call__(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
        """Convert codes to images, a few at a time, so that working memory does not grow with the batch.

        Values may lie slightly outside [-1, 1]. Waits for the device, to check them.

        Raises:
            CheckpointError: The images contain NaN or infinity, as with damaged weights.
        """
        decoded = self.queue(codes)
        check_finite(decoded.finite)
        return decoded.images

    @torch.no_grad()
    @undisturbed()
    def queue(self, codes: Int[Tensor, "b h w"]) -> Decoded:
        """Convert codes to images as a call does, but without a wait for the device: the caller checks them later."""
        on_cuda = self._device.type == "cuda"
        with torch.cuda.device(self._device) if on_cuda else nullcontext():  # graphs are of the current device
            images = self._slices(codes)
            return Decoded(images, images.isfinite().all())

    def _decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
        return self._decoder(F.embedding(codes, self._table).movedim(-1, 1))  # channels last, (B, C, h, w)
