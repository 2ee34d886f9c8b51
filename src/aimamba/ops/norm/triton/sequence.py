"""How the kernels of norms are launched that take all tokens of a sequence."""

from typing import NamedTuple


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        tokens: Tokens of a program; the forward kernel takes one.
        warps: Warps of a program.
    """

    tokens: int
    warps: int
