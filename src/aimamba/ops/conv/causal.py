"""The causal depthwise convolution over tokens: whole sequences and single steps.

Shape letters: B batch, L tokens, C channels, K taps.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def causal_conv(
    x: Float[Tensor, "b l c"], weight: Float[Tensor, "c k"], bias: Float[Tensor, " c"]
) -> Float[Tensor, "b l c"]:
    """Convolve each channel with its own taps: ``y_t = bias + sum_k weight_k x_{t-K+1+k}``, zeros before the start.

    Written as K shifted products, which on CPU is faster than a grouped convolution and works in every dtype.
    """
    length, taps = x.shape[1], weight.shape[1]
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)  # keeps products of narrow inputs narrow
    padded = torch.nn.functional.pad(x, (0, 0, taps - 1, 0))
    y = torch.addcmul(bias, padded[:, :length], weight[:, 0])
    for k in range(1, taps):
        y = torch.addcmul(y, padded[:, k : k + length], weight[:, k])
    return y


def causal_conv_silu(
    x: Float[Tensor, "b l c"], weight: Float[Tensor, "c k"], bias: Float[Tensor, " c"]
) -> Float[Tensor, "b l c"]:
    """Compute ``silu(causal_conv(x, weight, bias))``, keeping only ``x`` for the backward pass; differentiable once."""
    if torch.compiler.is_compiling():  # the compiler fuses the plain operations itself
        return F.silu(causal_conv(x, weight, bias))
    return _CausalConvSiLU.apply(x, weight, bias)  # type: ignore[no-untyped-call]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``causal_conv`` with the fastest operation for ``x``."""
    if not _grouped_is_fast(x):
        return causal_conv(x, weight, bias)
    return _grouped(x, weight, bias)[:, : x.shape[1]]


def _correlate(dy: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of ``causal_conv`` with respect to its input: the same convolution, reversed in time."""
    zeros = weight.new_zeros(weight.shape[0])
    if not _grouped_is_fast(dy):
        return causal_conv(dy.flip(1), weight, zeros).flip(1)
    return _grouped(dy, weight.flip(1), zeros)[:, weight.shape[1] - 1 :]


def _grouped_is_fast(x: Tensor) -> bool:
    """Return whether oneDNN can convolve ``x``; without it a grouped convolution runs channel by channel."""
    if x.device.type != "cpu" or x.numel() == 0 or not torch.backends.mkldnn.is_available():
        return False
    narrow = x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return narrow or x.dtype == torch.float32


def _grouped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with K - 1 zeros on both sides: (B, L + K - 1, C)."""
    channels, taps = weight.shape
    rows = x.mT[:, :, None]  # (B, C, 1, L), channels last in memory
    weight, bias = weight.to(x.dtype)[:, None, None], bias.to(x.dtype)
    return F.conv2d(rows, weight, bias, padding=(0, taps - 1), groups=channels)[:, :, 0].mT


class _CausalConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return F.silu(_convolve(x, weight, bias)).contiguous()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias = ctx.saved_tensors
        taps, length = weight.shape[1], x.shape[1]
        y = _convolve(x, weight, bias)
        dy = torch.ops.aten.silu_backward(dy.to(y.dtype), y)
        dx = _correlate(dy, weight)
        wide = torch.promote_types(x.dtype, torch.float32)
        x, dy = x.to(wide), dy.to(wide)
        dweight = [(dy[:, lag:] * x[:, : length - lag]).sum(dim=(0, 1)) for lag in range(min(taps, length))]
        dweight += [torch.zeros_like(dweight[0])] * (taps - len(dweight))
        return dx, torch.stack(dweight[::-1], dim=1).to(weight.dtype), dy.sum(dim=(0, 1)).to(bias.dtype)


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
    y = (recent * weight.to(recent.dtype).t()).sum(dim=1) + bias.to(recent.dtype)
    return y.to(x.dtype), recent[:, 1:]
