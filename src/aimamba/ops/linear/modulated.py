"""Modulated norm and the matrix product that follows it, one token per row.

Shape letters: B rows, D width, O outputs, G partial sums.
"""

from jaxtyping import Float
from torch import Tensor

from aimamba.ops.linear.linear import linear
from aimamba.ops.norm.modulated import modulated_norm_step


def modulated_linear_step(
    residual: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    shift: Float[Tensor, "b d"],
    scale: Float[Tensor, "b d"],
    weight: Float[Tensor, "o d"],
    *,
    mixed: Float[Tensor, "b d"] | None = None,
    gate: Float[Tensor, "b d"] | None = None,
    squares: Float[Tensor, "b g"] | None = None,
    inner: int = 1,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "b o"], Float[Tensor, "b d"]]:
    """``modulated_norm_step`` and the product with ``weight`` after it; other arguments are those of the former.

    Returns:
        The product, and the residual after the addition. Whether the residual that was given changes is left open.
    """
    hidden = modulated_norm_step(
        residual, norm_weight, shift, scale, mixed=mixed, gate=gate, squares=squares, inner=inner, eps=eps
    )
    return linear(hidden, weight), residual
