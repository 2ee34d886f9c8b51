"""The weights that every form of a mixer takes.

Shape letters: E inner width, H heads, N state size, C = E + 2 N convolved channels, K taps.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class MixerWeights(NamedTuple):
    """The weights of a mixer except its two projections.

    Attributes:
        conv_weight: Taps of the causal convolution, oldest first.
        conv_bias: Bias of the convolution.
        dt_bias: Added to the step sizes before softplus.
        A_log: Logarithm of the decay rates: A = -exp(A_log).
        D: Skip from the input of the SSD to its output, one number a head.
        norm_weight: Scale of the gated norm.
    """

    conv_weight: Float[Tensor, "c k"]
    conv_bias: Float[Tensor, " c"]
    dt_bias: Float[Tensor, " h"]
    A_log: Float[Tensor, " h"]
    D: Float[Tensor, " h"]
    norm_weight: Float[Tensor, " e"]
