"""3 x 3 convolutions on the CPU with a quarter of the products: Winograd's F(4 x 4, 3 x 3) as a C++ kernel.

The kernel is compiled on first use and kept. It computes in float32; compared with ``torch.nn.functional.conv2d`` the
error is about 1e-5 of the largest output, no more than that of a direct convolution with another order of sums.

Shape letters: C inputs, K outputs, H W image. Channels are the last axis.
"""

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.conv.winograd import PackedConvolution
from aimamba.ops.native.build import load_library

_SOURCES = ("conv/native/winograd.cpp", "native/threads.h", "native/simd.h")
_LANES = 16  # floats in the widest vector


class Convolved(NamedTuple):
    """The result of a convolution.

    Attributes:
        output: (H, W, K), K rounded up to whole panels; the additional channels are 0.
        moments: Sum and sum of squares of every channel, in float64, for the norm that follows.
    """

    output: Float[Tensor, "h w k"]
    moments: Float[Tensor, "2 k"]


def load_kernel(flags: tuple[str, ...] | None = None) -> ctypes.CDLL | None:
    """Load the kernel, or return None if it cannot be compiled; see ``aimamba.ops.native.build.load_library``."""
    library = load_library(_SOURCES, flags)
    if library is not None:
        library.aim_convolve.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int] * 6
        library.aim_convolve.restype = None
    return library


def unsupported(inputs: int) -> str | None:
    """Return the reason why the kernel cannot convolve so many input channels, or None."""
    return f"the number of channels must be a multiple of {_LANES}, got {inputs}" if inputs % _LANES else None


def convolve(
    kernel: ctypes.CDLL,
    x: Float[Tensor, "h w c"],
    packed: PackedConvolution,
    *,
    norm: tuple[Float[Tensor, " c"], Float[Tensor, " c"]] | None = None,
    residual: Float[Tensor, "h2 w2 k"] | None = None,
    out: Float[Tensor, "h2 w2 k"] | None = None,
) -> Convolved:
    """Convolve one image.

    Args:
        kernel: From ``load_kernel``.
        x: The image, float32.
        packed: From ``aimamba.ops.conv.winograd.pack``.
        norm: Scale and shift of every input channel; ``silu(x * scale + shift)`` is convolved instead of ``x``.
        residual: Added to the output.
        out: Tensor to write the output to; may be ``residual``, but not ``x``.

    Returns:
        The output and its moments. They do not depend on the number of threads.
    """
    height, width, inputs = x.shape
    outputs, factor = packed.bias.shape[0], 2 if packed.doubles else 1
    assert unsupported(inputs) is None
    assert packed.weight.shape[3] == inputs
    shape = (factor * height, factor * width, outputs)
    output = x.new_empty(shape) if out is None else out
    scale, shift = (None, None) if norm is None else norm
    moments = torch.empty(2, outputs, dtype=torch.float64)
    for tensor in (x, scale, shift, residual, output):
        if tensor is not None and (tensor.dtype != torch.float32 or not tensor.is_contiguous()):
            raise TypeError(f"expected contiguous float32, got {tensor.dtype} with strides {tensor.stride()}")
    assert output.shape == shape
    assert residual is None or residual.shape == shape
    tensors = (x, scale, shift, packed.weight, packed.bias, residual, output, moments)
    numbers = (height, width, inputs, outputs, packed.doubles, torch.get_num_threads())
    kernel.aim_convolve(*(None if tensor is None else tensor.data_ptr() for tensor in tensors), *numbers)
    return Convolved(output, moments)
