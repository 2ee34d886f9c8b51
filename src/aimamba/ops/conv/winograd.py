"""The weights of a 3 x 3 convolution for Winograd's algorithm F(4 x 4, 3 x 3) (Lavin and Gray, arXiv 1509.09308).

The convolution itself is a kernel, ``aimamba.ops.conv.native.winograd``.

Shape letters: C inputs, K outputs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_PANEL = 32  # outputs side by side in the kernel
_A, _B = 0.5**0.5, 2**0.5  # the points are 0, +-A, +-B and infinity


@dataclass(frozen=True)
class PackedConvolution:
    """Weights of a 3 x 3 convolution with padding 1, in the order in which the kernel reads them.

    Attributes:
        weight: (phases, panels, 36, C, 32). A convolution that doubles has four phases: the parities of the row and
            the column of an output pixel.
        bias: (K rounded up to whole panels).
        doubles: Whether height and width double.
    """

    weight: Float[Tensor, "phases panels 36 c 32"]
    bias: Float[Tensor, " k"]
    doubles: bool


def pack(
    weight: Float[Tensor, "k c 3 3"], bias: Float[Tensor, " k"], *, after_doubling: bool = False
) -> PackedConvolution:
    """Transform the weights of a convolution for the kernel.

    Args:
        weight: Weights of the convolution.
        bias: Bias of the convolution.
        after_doubling: The convolution follows a nearest-neighbour upsampling by 2, which becomes part of it.
    """
    kernels = weight.detach()[None]  # (phases, K, C, 3, 3)
    if after_doubling:
        # Of three neighbouring taps two fall on the same pixel of the small grid.
        places = weight.new_tensor([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
        kernels = torch.einsum("aip,bjq,kcpq->abkcij", places, places, weight.detach()).flatten(0, 1)
    phases, outputs, inputs = kernels.shape[:3]
    spare = -outputs % _PANEL
    points = _weight_map().to(weight.device)
    mapped = torch.einsum("ui,vj,nkcij->nkuvc", points, points, kernels.double()).float()  # (phases, K, 6, 6, C)
    mapped = F.pad(mapped, (0, 0, 0, 0, 0, 0, 0, spare)).reshape(phases, -1, _PANEL, 36, inputs)
    return PackedConvolution(
        mapped.permute(0, 1, 3, 4, 2).contiguous(), F.pad(bias.detach().float(), (0, spare)), after_doubling
    )


def _weight_map() -> Float[Tensor, "6 3"]:
    """Return G of the paper: a kernel's polynomial at each point, divided by the distances to the other points."""
    near, far = 2 * _A**2 * (_A**2 - _B**2), 2 * _B**2 * (_B**2 - _A**2)
    rows = [[1.0, 0.0, 0.0]]
    rows += [
        [1 / over, point / over, point**2 / over] for over, root in ((near, _A), (far, _B)) for point in (root, -root)
    ]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
