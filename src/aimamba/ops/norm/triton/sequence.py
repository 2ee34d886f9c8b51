"""How the kernels of norms are launched that take all tokens of a sequence."""

from typing import NamedTuple


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        tokens: Tokens of a program, one after the other.
        warps: Warps of a program.
        stages: Tokens that are on their way from memory while one is computed.
    """

    tokens: int
    warps: int
    stages: int
