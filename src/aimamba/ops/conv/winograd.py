"""Convolutions of 3 x 3 on the CPU with a quarter of the products: Winograd's F(4 x 4, 3 x 3) (arXiv 1509.09308).

The kernel is C++ (``aimamba.ops.native``). It computes in float32; against ``torch.nn.functional.conv2d`` it is off by
about 1e-5 of the largest output, not more than a direct convolution in another order of sums.

Shape letters: C inputs, K outputs, H W image. Channels stand last.
"""

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.native.build import load_library

_SOURCES = ("conv/native/winograd.cpp", "native/threads.h", "native/simd.h")
_PANEL = 32  # outputs side by side in the kernel
_LANES = 16  # the widest vector of floats
_A, _B = 0.5**0.5, 2**0.5  # the points are 0, +-A, +-B and infinity


def load_kernel(flags: tuple[str, ...] | None = None) -> ctypes.CDLL | None:
    """The compiled kernel, or None where it cannot be had; see ``aimamba.ops.native.build.load_library``."""
    library = load_library(_SOURCES, flags)
    if library is not None:
        library.aim_convolve.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int] * 6
        library.aim_convolve.restype = None
    return library


@dataclass(frozen=True)
class PackedConvolution:
    """Weights of a 3 x 3 convolution with padding 1, as the kernel reads them.

    Attributes:
        weight: (phases, panels, 36, C, 32); the four phases of a doubling convolution are the parities of the rows
            and columns that it draws.
        bias: (K rounded up to whole panels).
        doubles: Whether height and width double.
    """

    weight: Float[Tensor, "phases panels 36 c 32"]
    bias: Float[Tensor, " k"]
    doubles: bool


class Convolved(NamedTuple):
    """What a convolution gives.

    Attributes:
        output: (H, W, K), K rounded up to whole panels; the channels beyond are 0.
        moments: Sum and sum of squares of every channel, float64, for the norm that follows.
    """

    output: Float[Tensor, "h w k"]
    moments: Float[Tensor, "2 k"]


def fits(inputs: int) -> bool:
    """Whether the kernel takes so many input channels."""
    return inputs % _LANES == 0


def pack(
    weight: Float[Tensor, "k c 3 3"], bias: Float[Tensor, " k"], *, after_doubling: bool = False
) -> PackedConvolution:
    """Prepare a convolution; with ``after_doubling`` one that follows a repetition of every place, 2 x 2 times."""
    kernels = weight.detach()[None]  # (phases, K, C, 3, 3)
    if after_doubling:
        # Two neighbouring taps fall on the same place of the small grid, and one place is not seen at all.
        places = weight.new_tensor([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
        kernels = torch.einsum("aip,bjq,kcpq->abkcij", places, places, weight.detach()).flatten(0, 1)
    phases, outputs, inputs = kernels.shape[:3]
    spare = -outputs % _PANEL
    points = _weight_map().to(weight.device)
    mapped = torch.einsum("ui,vj,nkcij->nkuvc", points, points, kernels.double()).float()  # (phases, K, 6, 6, C)
    mapped = F.pad(mapped, (0, 0, 0, 0, 0, 0, 0, spare)).view(phases, -1, _PANEL, 36, inputs)
    return PackedConvolution(
        mapped.permute(0, 1, 3, 4, 2).contiguous(), F.pad(bias.detach().float(), (0, spare)), after_doubling
    )


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
        packed: From ``pack``.
        norm: Scale and shift of every input channel; ``silu(x * scale + shift)`` is convolved in place of ``x``.
        residual: Added to the output.
        out: Where to write the output; may be ``residual``, not ``x``.

    Returns:
        The output and its moments. They do not depend on the number of threads.
    """
    height, width, inputs = x.shape
    outputs, factor = packed.bias.shape[0], 2 if packed.doubles else 1
    assert fits(inputs)
    assert packed.weight.shape[3] == inputs
    shape = (factor * height, factor * width, outputs)
    output = x.new_empty(shape) if out is None else out
    scale, shift = (None, None) if norm is None else norm
    moments = torch.empty(2, outputs, dtype=torch.float64)
    for tensor in (x, scale, shift, residual, output):
        assert tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous())
    assert output.shape == shape
    assert residual is None or residual.shape == shape
    tensors = (x, scale, shift, packed.weight, packed.bias, residual, output, moments)
    numbers = (height, width, inputs, outputs, packed.doubles, torch.get_num_threads())
    kernel.aim_convolve(*(None if tensor is None else tensor.data_ptr() for tensor in tensors), *numbers)
    return Convolved(output, moments)


def _weight_map() -> Float[Tensor, "6 3"]:
    """G of the paper: a kernel's polynomial at each point, over the product of the distances to the other points."""
    near, far = 2 * _A**2 * (_A**2 - _B**2), 2 * _B**2 * (_B**2 - _A**2)
    rows = [[1.0, 0.0, 0.0]]
    rows += [
        [1 / over, point / over, point**2 / over] for over, root in ((near, _A), (far, _B)) for point in (root, -root)
    ]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
