"""Group normalisation (Wu and He, arXiv 1803.08494) that keeps images channels last, optionally followed by SiLU.

PyTorch's own on CUDA returns its output channels first, whatever the input is (pytorch issue 111824). Between two
convolutions that run channels last, that costs two copies of the whole tensor.

Shape letters: B images, C channels, H W grid.
"""

import functools
import logging

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops import triton as kernels

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_CHANNELS = 4096
_MOST_NUMBERS = 1 << 31  # of an image: places in it are 32-bit numbers
_TOLERANCE = 0.02  # relative to the largest number; bfloat16 is rounded by 0.004, wrong results differ by much more

_log = logging.getLogger(__name__)


def group_norm(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    *,
    groups: int,
    eps: float = 1e-5,
    silu: bool = False,
) -> Float[Tensor, "b c h w"]:
    """Normalise each image's groups of channels to mean 0 and variance 1, then scale and shift each channel.

    On a CUDA device this is two Triton kernels, where ``unsupported`` has nothing against it.

    Args:
        x: Images in any layout; channels last is read without a copy.
        weight: Scale of each channel.
        bias: Shift of each channel.
        groups: Number of groups; it divides the number of channels.
        eps: Added to the variances.
        silu: Whether ``y * sigmoid(y)`` follows.

    Returns:
        The result in the dtype of ``x``; channels last if ``x`` is, or if the kernels computed it.
    """
    if unsupported(x, weight) is None:
        from aimamba.ops.norm.triton import group as fused  # noqa: PLC0415 - imports Triton

        return fused.group_norm(x, weight, bias, groups=groups, eps=eps, silu=silu)
    y = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(y) if silu else y


def unsupported(x: Float[Tensor, "b c h w"], weight: Float[Tensor, " c"]) -> str | None:
    """Return the reason why the kernels cannot normalise ``x``, or None. Tries them once on a device."""
    if not x.is_cuda:
        return f"they run on CUDA devices, and the images are on {x.device.type}"
    return _unfit(x, weight) or kernels.unsupported() or _trial(x.device, x.dtype)


def _unfit(x: Tensor, weight: Tensor) -> str | None:
    """Return what the kernels do not take, whatever the device is, or None."""
    if x.dtype not in _DTYPES:
        return f"they take float32, bfloat16 or float16, and the images are in {str(x.dtype).removeprefix('torch.')}"
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return "they have no backward pass"
    if x.numel() == 0:
        return "there are no images"
    if x.shape[1] > _MOST_CHANNELS or x[0].numel() >= _MOST_NUMBERS:
        return f"they take up to {_MOST_CHANNELS} channels, and less than 2^31 numbers an image"
    return None


@functools.cache
def _trial(device: torch.device, dtype: torch.dtype) -> str | None:
    """Compare the kernels with PyTorch's group norm, and return what is wrong with them, which is logged, or None.

    This finds a device for which they do not compile, as where Triton has no C compiler.
    """
    from aimamba.ops.norm.triton import group as fused  # noqa: PLC0415 - imports Triton

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 5, 7, generator=generator).to(device, dtype)
    weight, bias = torch.randn(2, 24, generator=generator).to(device, dtype)
    exact = F.silu(F.group_norm(x.float(), 4, weight.float(), bias.float(), 1e-6))
    reason = None
    try:
        found = fused.group_norm(x, weight, bias, groups=4, eps=1e-6, silu=True).float()
        if not float((found - exact).abs().max()) <= _TOLERANCE * float(exact.abs().max()):
            reason = "their results are wrong"
    except Exception as error:  # whatever a compiler or a driver may raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if reason is not None:
        _log.warning("group norms on %s are PyTorch's, not Triton kernels: %s", device, reason)
    return reason
