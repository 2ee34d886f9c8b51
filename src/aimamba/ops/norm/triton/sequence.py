"""How the kernels of norms are launched that take all tokens of a sequence."""

from typing import NamedTuple

from aimamba.ops.triton import register_options

_MOST_WARPS = 16


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        tokens: Tokens of a program, one after the other.
        numbers: Numbers of a token that a thread computes.
        stages: Tokens that are on their way from memory while one is computed.
        registers: The most that a thread may have; None for no limit.
    """

    tokens: int
    numbers: int
    stages: int
    registers: int | None = None

    def warps(self, width: int) -> int:
        """Return the warps of a program, for tokens of ``width`` numbers, rounded up to a power of two."""
        return min(max(1, width // (32 * self.numbers)), _MOST_WARPS)

    def options(self, width: int) -> dict[str, int]:
        """Return the launch as Triton's options, for tokens of ``width`` numbers, rounded up to a power of two."""
        return {"num_warps": self.warps(width)} | register_options(self.registers)
