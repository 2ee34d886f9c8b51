"""The causal convolution of training with its SiLU, forward and backward, computed in several ways."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.conv.causal import causal_conv, causal_conv_silu
from benchmarks.measurement import Measurement, spread
from benchmarks.ours import aim_config
from benchmarks.timing import repeated


def _shifted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(causal_conv(x, weight, bias))


def _grouped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels, taps = weight.shape
    padded = F.pad(x, (0, 0, taps - 1, 0)).transpose(1, 2)
    y = F.conv1d(padded, weight[:, None].to(x.dtype), bias.to(x.dtype), groups=channels)
    return F.silu(y.transpose(1, 2))


_FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ours": causal_conv_silu,
    "shifted products": _shifted,
    "grouped": _grouped,
}


def measure_convolution(measurement: Measurement) -> dict[str, Any]:
    """Time forward and backward.

    Returns:
        ``milliseconds`` with their spread.
    """
    device, config = torch.device(measurement.device), aim_config(measurement)
    channels = config.inner + 2 * config.state_size
    shape, dtype = (measurement.batch, measurement.tokens, channels), getattr(torch, measurement.dtype)
    x, gradient = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    weight, bias = (torch.randn(*size, device=device) for size in ((channels, config.conv_width), (channels,)))
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    form = _FORMS[measurement.subject]
    taken = repeated(
        lambda: form(x, weight, bias).backward(gradient),
        device,
        limit=measurement.limit_seconds,
        warm_up=2,
        most=10,
    )
    return {"milliseconds": spread([1000 * seconds for seconds in taken])}
