"""Causal depthwise convolution over tokens, whole and one step at a time.

Shape letters: B batch, L tokens, C channels, K taps.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def causal_conv(
    x: Float[Tensor, "b l c"], weight: Float[Tensor, "c k"], bias: Float[Tensor, " c"]
) -> Float[Tensor, "b l c"]:
    """Convolve each channel with its own taps: ``y_t = bias + sum_k weight_k x_{t-K+1+k}``, zeros before the start.

    Written as K shifted products, which on CPU is faster than a grouped convolution and works in every dtype.
    """
    length, taps = x.shape[1], weight.shape[1]
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)  # else every product of narrow inputs would be widened
    padded = torch.nn.functional.pad(x, (0, 0, taps - 1, 0))
    y = torch.addcmul(bias, padded[:, :length], weight[:, 0])
    for k in range(1, taps):
        y = torch.addcmul(y, padded[:, k : k + length], weight[:, k])
    return y


def causal_conv_step(
    x: Float[Tensor, "b c"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"],
    window: Float[Tensor, "b k1 c"],
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b k1 c"]]:
    """Advance ``causal_conv`` by one token; ``window`` holds the last K - 1 inputs, oldest first.

    Returns:
        The output for this token, and the window for the next one.
    """
    recent = torch.cat([window, x[:, None].to(window.dtype)], dim=1)  # (B, K, C)
    y = bias + (recent * weight.t()).sum(dim=1)
    return y.to(x.dtype), recent[:, 1:]
