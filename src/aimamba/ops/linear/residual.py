"""The norm between two blocks and the matrix product that follows it, for one token a row.

Shape letters: B rows, D width, O outputs, G partial sums, S parts of a product.
"""

from jaxtyping import Float
from torch import Tensor

from aimamba.ops.linear.linear import linear
from aimamba.ops.norm.residual import residual_norm_step


def residual_linear_step(
    residual: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    shift: Float[Tensor, "b d"],
    scale: Float[Tensor, "b d"],
    weight: Float[Tensor, "o d"],
    *,
    mixed: Float[Tensor, "*s b d"] | None = None,
    gate: Float[Tensor, "b d"] | None = None,
    squares: Float[Tensor, "b g"] | None = None,
    inner: int = 1,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "b o"], Float[Tensor, "b d"]]:
    """Compute ``residual_norm_step`` and multiply its result with ``weight``.

    Takes the arguments of ``residual_norm_step`` and the weight of the product.

    Returns:
        The product, and the new residual. Whether ``residual`` itself changes is unspecified.
    """
    hidden = residual_norm_step(
        residual, norm_weight, shift, scale, mixed=mixed, gate=gate, squares=squares, inner=inner, eps=eps
    )
    return linear(hidden, weight), residual
