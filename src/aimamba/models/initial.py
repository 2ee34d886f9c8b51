"""Initial values that several mixers share."""

import math

import torch
from torch import Tensor

_SLOWEST_DT, _FASTEST_DT = 1e-3, 0.1


def fill_uniform(weight: Tensor, generator: torch.Generator | None, *, scale: float = 1.0) -> None:
    """Fill a matrix uniformly within +- ``scale`` / sqrt(fan in)."""
    bound = weight.shape[1] ** -0.5 * scale
    weight.uniform_(-bound, bound, generator=generator)


def fill_dt_bias(dt_bias: Tensor, generator: torch.Generator | None) -> None:
    """Fill with the inverse softplus of step sizes that are log-uniform in [0.001, 0.1]."""
    dt = dt_bias.uniform_(math.log(_SLOWEST_DT), math.log(_FASTEST_DT), generator=generator).exp_()
    dt.add_(torch.log(-torch.expm1(-dt)))
