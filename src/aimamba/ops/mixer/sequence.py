"""The part of a Mamba-2 mixer between its two projections, for all tokens at once, in PyTorch's operations.

Shape letters: B batch, L tokens, H heads, P head width, E = H P inner width, N state size, C = E + 2 N convolved
channels, Z = E + C + H projected features.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.conv.causal import causal_conv_silu
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.norm.rms import gated_rms_norm_efficient
from aimamba.ops.ssd.autograd import ssd_autograd
from aimamba.ops.ssd.reference import SSDForm

EPS = 1e-5  # of the gated norm


def mixer_sequence(
    projected: Float[Tensor, "b l z"],
    weights: MixerWeights,
    *,
    state_size: int,
    chunk_size: int = 64,
    ssd: SSDForm = ssd_autograd,
) -> Float[Tensor, "b l e"]:
    """Convolve, apply the SSD, add the skip, gate and normalise (Dao and Gu, arXiv 2405.21060, section 7).

    Works on every device and in every dtype.

    Args:
        projected: Output of the input projection for each token: the gate z (E), the convolved part (x with E features,
            then B and C with N each) and the step sizes dt (H).
        weights: Weights of the mixer.
        state_size: N.
        chunk_size: Tokens that the SSD handles at once; changes speed, not results.
        ssd: Form of the SSD.

    Returns:
        Input of the output projection, in the dtype of ``projected``; differentiable once.
    """
    heads, inner = len(weights.A_log), len(weights.norm_weight)
    z, xBC, dt = projected.split([inner, inner + 2 * state_size, heads], dim=-1)
    dt = F.softplus(dt.to(weights.dt_bias.dtype) + weights.dt_bias)
    xBC = causal_conv_silu(xBC, weights.conv_weight, weights.conv_bias)
    x, B, C = xBC.split([inner, state_size, state_size], dim=-1)
    x = x.unflatten(-1, (heads, -1))  # (B, L, H, P)
    A = -weights.A_log.exp()
    y, _ = ssd(x, dt, A.to(dt.dtype), B, C, chunk_size=chunk_size)
    y = y + weights.D.to(y.dtype)[:, None] * x
    return gated_rms_norm_efficient(y.flatten(-2), z, weights.norm_weight, eps=EPS)
