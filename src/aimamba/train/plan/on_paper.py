"""A training step on the meta device: what it would keep and need on a CPU or on CUDA.

The model and its loss are those of training. What has no form on the meta device is replaced by a stand-in that
returns, keeps and frees tensors of the same shapes: the kernels of a mixer (``ops.mixer``), the loss in slices
(``ops.loss``), and autocast, which narrows the inputs of the same operations as on CUDA.

Shape letters: B batch, L tokens, M = B L, D width, E inner width, C convolved channels, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aimamba.models.mamba2 import Mamba2
from aimamba.train.plan.meter import ACTIVATIONS, CASTS, Meter

_TOKENS_OF_CUDA, _TOKENS_OF_CPU = 1024, 512  # most tokens that the kernels take, see ``ops.mixer``
_LOGITS_OF_CPU, _SHARE_OF_CUDA = 2**22, 512  # see ``ops.loss.cross_entropy``

# The operations of torch's own lists that the models use (ATen/autocast_mode.h).
_NARROWED = {
    F.linear, F.conv2d, torch.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.mm, torch.addmm,
    F.scaled_dot_product_attention,
}  # fmt: skip
_WIDENED = {
    F.group_norm, torch.group_norm, F.rms_norm, torch.rms_norm, F.softplus, F.mse_loss, F.l1_loss,
    torch._C._nn.upsample_nearest2d, torch._C._nn.upsample_bilinear2d,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a step would run.

    Attributes:
        cuda: Whether on CUDA, or else on a CPU with a C++ compiler.
        narrow: Whether products are bfloat16, by autocast.
        memory: Bytes of a CUDA device's memory, which decide how many logits exist at once.
    """

    cuda: bool = False
    narrow: bool = False
    memory: int = 0

    @property
    def logits_at_once(self) -> int:
        """Logits of a slice of the loss."""
        return max(_LOGITS_OF_CPU, self.memory // _SHARE_OF_CUDA) if self.cuda else _LOGITS_OF_CPU


@dataclass(frozen=True)
class Needs:
    """Bytes that a forward and a backward pass need beside the weights.

    Attributes:
        activations: Most that operations returned and that was alive at once.
        casts: Weights in bfloat16, which autocast keeps from the forward pass to the backward pass.
        gradients: Gradients of all parameters.
        peak: Most of the three at once. Gradients come while activations go, so it is less than their sum.
    """

    activations: int
    casts: int
    gradients: int
    peak: int


class _Autocast(TorchFunctionMode):
    """Autocast to bfloat16 for the meta device; on where the CPU's flag says so (see ``without_autocast``)."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self._kept: dict[int, Tensor] = {}
        self.keeps = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _NARROWED and torch.is_autocast_enabled("cpu"):
            args, kwargs = self._each(self._narrow, args, kwargs)
        elif func in _WIDENED and torch.is_autocast_enabled("cpu"):
            args, kwargs = self._each(_widen, args, kwargs)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _each(change: Callable[[Any], Any], args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(change, args)), {name: change(value) for name, value in (kwargs or {}).items()}

    def _narrow(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.bfloat16()
        if id(value) in self._kept:
            return self._kept[id(value)]
        with self._meter.counting_as(CASTS):
            narrow = value.bfloat16()
        if self.keeps:
            self._kept[id(value)] = narrow
        return narrow

    def forget(self) -> None:
        """Let go of the weights in bfloat16, as at the end of autocast."""
        self._kept.clear()
        self.keeps = False


def needs(
    models: Sequence[nn.Module],
    loss: Callable[[], Tensor],
    place: Place,
) -> Needs:
    """Run one forward and backward pass on the meta device.

    Args:
        models: The networks that are trained, on the meta device; gradients of their parameters are removed again.
        loss: Computes the loss of a batch, which it makes itself.
        place: Where the step would run.
    """
    parameters = [weight for model in models for weight in model.parameters() if weight.requires_grad]
    meter = Meter()
    autocast = _Autocast(meter)
    hooks = [weight.register_post_accumulate_grad_hook(meter.is_gradient) for weight in parameters]
    blocks = [block for model in models for block in getattr(model, "blocks", ())]
    for block in blocks:
        block.forward = partial(_again, autocast, block)
    try:
        with autocast, meter:
            with torch.autocast("cpu", torch.bfloat16, enabled=place.narrow):
                total = loss()
            autocast.forget()
            total.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks:
            del block.forward
    gradients = sum(weight.numel() * weight.element_size() for weight in parameters)
    for weight in parameters:
        weight.grad = None
    return Needs(meter.peaks[ACTIVATIONS], meter.peaks[CASTS], gradients, meter.peak)


def _again(autocast: _Autocast, block: nn.Module, *inputs: Any) -> Any:
    """Compute a block; in the backward pass, which switches the mode off, with the mode."""
    with nullcontext() if autocast.keeps else autocast:
        return type(block).forward(block, *inputs)


def stand_in_for_mixers(model: nn.Module, place: Place) -> None:
    """Let the mixers of a generator on the meta device keep what the kernels of ``place`` would keep.

    Without a kernel (float32 on CUDA, long sequences, attention) they compute with plain operations as they are.
    """
    for module in model.modules():
        if isinstance(module, Mamba2):
            module.forward = partial(_mix, module, place)  # type: ignore[method-assign]


def _mix(mixer: Mamba2, place: Place, x: Tensor) -> Tensor:
    most = (_TOKENS_OF_CUDA if place.narrow else 0) if place.cuda else _TOKENS_OF_CPU
    if x.shape[1] > most:
        return Mamba2.forward(mixer, x)
    out: Tensor = _Mixer.apply(mixer.in_proj(x), place.cuda, *mixer.mixer_weights)  # type: ignore[no-untyped-call]
    return mixer.out_proj(out)


class _Mixer(torch.autograd.Function):
    """The middle of a mixer: its kernels keep their input, the output of the SSD and a number a token."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, cuda: bool, *weights: Tensor) -> Tensor:
        batch, length, _ = projected.shape
        channels, inner = len(weights[0]), len(weights[-1])
        active = projected.new_empty(batch, length, channels) if cuda else None  # the C++ kernel keeps it in the cache
        ssd = projected.new_empty(batch, length, inner)
        out, inverse = projected.new_empty(batch, length, inner), ssd.new_empty(batch, length, dtype=torch.float32)
        ctx.cuda, ctx.weights = cuda, len(weights)
        ctx.save_for_backward(projected, *weights, ssd, inverse, *([] if cuda else [out]))
        del active
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        projected, *weights, ssd, _ = ctx.saved_tensors[: 3 + ctx.weights]
        dprojected = torch.empty_like(projected)
        if ctx.cuda:
            of_channels = (len(projected), projected.shape[1], len(weights[0]))
            needed = [torch.empty_like(ssd), *(projected.new_empty(of_channels) for _ in range(2))]
        else:
            needed = [weight.new_empty(len(projected), *weight.shape) for weight in weights]
        found = [torch.empty_like(weight) for weight in weights]
        del needed
        return dprojected, None, *found


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, place: Place) -> Tensor:
    """Return the loss of ``ops.loss.cross_entropy.sliced_cross_entropy``, on the meta device.

    Args:
        hidden: (M, D).
        weight: The head, (V, D).
        targets: (M).
        place: Where the step would run.
    """
    narrow = torch.bfloat16 if place.narrow else hidden.dtype
    rows = min(len(targets), max(1, place.logits_at_once // len(weight)))
    with torch.autocast("cpu", enabled=False):
        loss: Tensor = _CrossEntropy.apply(hidden, weight, rows, narrow, place.cuda)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    """One slice of logits after the other; the gradients of the inputs and of the head are kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, rows: int, narrow: torch.dtype, cuda: bool) -> Tensor:
        head, dhidden = weight.to(narrow), torch.empty_like(hidden)
        dweight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        logits = head.new_empty(rows, len(head))
        logs = None if cuda else logits.new_empty(logits.shape, dtype=torch.float32)
        part = head.new_empty(rows, head.shape[1])
        adding = dweight is not None and narrow != weight.dtype
        of_slice = torch.empty_like(head) if adding else None  # before it is added
        ctx.cuda = cuda
        ctx.save_for_backward(dhidden, dweight)
        del logits, logs, part, of_slice
        return hidden.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        if not ctx.cuda:  # where the factor can be read, it is 1
            return dhidden, dweight, None, None, None
        factor = gradient.to(dhidden.dtype)
        return dhidden * factor, None if dweight is None else dweight * gradient, None, None, None


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
