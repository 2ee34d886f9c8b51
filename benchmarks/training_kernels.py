"""The kernels of a training step on CUDA, one at a time, next to the bytes that each has to move.

Shape letters: B batch, L tokens, E inner width, H heads, C convolved channels, Z projected features, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from aimamba import AiM
from benchmarks.measurement import first_line
from benchmarks.timing_cuda import copies, microseconds

DTYPE = torch.bfloat16
_LOSS_TOKENS = 4096

# Layouts to try: tokens, channels and warps; tokens, numbers of a thread and stages.
_CONVOLUTIONS = (
    (32, 256, 1), (32, 128, 1), (32, 256, 2), (64, 128, 1), (16, 128, 1), (64, 256, 2), (32, 64, 1), (16, 256, 2),
)  # fmt: skip
_NORMS = ((1, 16, 1), (1, 8, 1), (1, 4, 1), (4, 16, 2), (4, 8, 2), (8, 16, 2), (8, 8, 2), (8, 8, 3), (8, 4, 3))
_NORMS_BACKWARD = (
    (16, 16, 1), (16, 8, 1), (16, 4, 1), (16, 16, 2), (16, 8, 2), (16, 4, 2), (16, 16, 3), (16, 8, 3), (16, 4, 3),
    (8, 8, 2), (32, 4, 3), (16, 16, 3, 128), (16, 4, 3, 64),
)  # fmt: skip
# Tokens, warps, stages and the most registers of a thread.
_SCANS = (
    (64, 4, 1, None), (64, 4, 1, 168), (64, 4, 1, 128), (64, 4, 2, None), (64, 4, 2, 168), (64, 4, 2, 128),
    (64, 8, 1, None), (64, 8, 1, 128), (32, 4, 2, None), (128, 8, 2, None),
)  # fmt: skip

Timed = tuple[str, object, int, Callable[[], object]]
"""Name of a kernel, its launch layout, the bytes that it reads and writes at least, and a call."""


def time_training(model: AiM, batch: int, device: torch.device, *, layouts: bool) -> list[dict[str, Any]]:
    """Time the kernels of a block and of the loss, forward and backward, for images of the model's size."""
    pieces = []
    for kernel, launch, size, call in _calls(model, batch, device, layouts):
        piece: dict[str, Any] = {"kernel": kernel, "rows": batch, "launch": launch, "bytes": size}
        try:
            piece["microseconds"] = microseconds([call] * copies(max(size, 1 << 24)))
        except Exception as error:  # whatever a compiler or a driver may raise
            piece["failed"] = first_line(error)
        pieces.append(piece)
    return pieces


def _calls(model: AiM, batch: int, device: torch.device, layouts: bool) -> Iterator[Timed]:
    yield from _mixer_calls(model, batch, device, layouts)
    yield from _norm_calls(model, batch, device, layouts)
    yield from _product_calls(model, batch, device)
    yield from _loss_calls(model, device, layouts)


def _mixer_calls(model: AiM, batch: int, device: torch.device, layouts: bool) -> Iterator[Timed]:
    from aimamba.ops.conv.triton import causal  # noqa: PLC0415 - imports Triton
    from aimamba.ops.norm.triton import gated  # noqa: PLC0415
    from aimamba.ops.ssd.triton import quadratic, quadratic_backward  # noqa: PLC0415

    config = model.config
    length, inner = config.num_tokens, config.inner
    heads, channels = inner // config.head_width, inner + 2 * config.state_size
    made = functools.partial(torch.randn, device=device)
    projected = made(batch, length, inner + channels + heads).to(DTYPE)
    taps, bias, dt_bias, A_log, skip = made(channels, 4), made(channels), made(heads) - 4, made(heads), made(heads)
    scale, dout = made(inner), made(batch, length, inner).to(DTYPE)
    dprojected = torch.empty_like(projected)
    tokens = batch * length

    for launch in _CONVOLUTIONS if layouts else [causal.FORWARD]:
        call = functools.partial(causal.causal_conv_silu, projected, taps, bias, inner, launch=causal.Launch(*launch))
        yield "convolution", list(launch), 4 * tokens * channels, call
    active = causal.causal_conv_silu(projected, taps, bias, inner)
    for launch in _CONVOLUTIONS if layouts else [causal.BACKWARD]:
        call = functools.partial(
            causal.causal_conv_silu_backward, projected, taps, bias, active, dprojected, inner,
            launch=causal.Launch(*launch),
        )  # fmt: skip
        yield "convolution, backward", list(launch), 6 * tokens * channels, call

    for launch in _NORMS if layouts else [gated.FORWARD]:
        call = functools.partial(gated.gated_rms_norm, dout, projected, scale, eps=1e-5, launch=gated.Launch(*launch))
        yield "gated norm", list(launch), 6 * tokens * inner, call
    _, inverses = gated.gated_rms_norm(dout, projected, scale, eps=1e-5)
    for launch in _NORMS_BACKWARD if layouts else [gated.BACKWARD]:
        call = functools.partial(
            gated.gated_rms_norm_backward, dout, dout, projected, scale, inverses, dprojected,
            launch=gated.Launch(*launch),
        )  # fmt: skip
        yield "gated norm, backward", list(launch), 10 * tokens * inner, call

    for launches in _scan_launches(quadratic) if layouts else [quadratic.LAUNCHES[DTYPE]]:
        label = f"tiles of {launches.tokens}, {tuple(launches.output)}"
        tiles = quadratic.similarities(active, inner, launches.tokens)
        steps = quadratic.steps(projected, dt_bias, A_log, launches.tokens)
        similar = functools.partial(quadratic.similarities, active, inner, launches.tokens)
        yield "similarities", label, 4 * tokens * config.state_size, similar
        stepping = functools.partial(quadratic.steps, projected, dt_bias, A_log, launches.tokens)
        yield "steps", label, 2 * tokens * heads, stepping
        scan = functools.partial(quadratic.ssd_quadratic, active, tiles, steps, skip, inner, launches=launches)
        yield "scan", label, 4 * tokens * inner, scan
        dactive = torch.empty_like(active)
        gradient = functools.partial(
            quadratic_backward.gradient_of_inputs, dout, active, tiles, steps, skip, dactive, launches.inputs
        )
        yield "scan, gradient of inputs", label, 6 * tokens * inner, gradient
        for groups in (2, 4, 8) if layouts else (launches.pair_groups,):
            pairs = functools.partial(
                quadratic_backward.gradient_of_pairs, dout, active, tiles, steps, launches._replace(pair_groups=groups)
            )
            yield "scan, gradient of similarities", f"{label}, {groups} groups", 4 * tokens * inner, pairs
        usual = quadratic.LAUNCHES[DTYPE]
        for kernel in ("within", "apart") if layouts and launches.tokens == usual.tokens else ():
            changed = usual._replace(**{kernel: getattr(launches, kernel)})
            pairs = functools.partial(quadratic_backward.gradient_of_pairs, dout, active, tiles, steps, changed)
            yield "scan, gradient of similarities", f"{label} for the kernel {kernel}", 4 * tokens * inner, pairs
        yield "scan, backward", label, 6 * tokens * inner, functools.partial(
            quadratic_backward.ssd_quadratic_backward, dout, projected, active, tiles, steps, dt_bias, A_log, skip,
            dprojected, launches=launches,
        )  # fmt: skip


def _scan_launches(quadratic: Any) -> Iterator[Any]:
    """Yield layouts of the scan: one launch for all of its kernels at a time."""
    for tokens, *layout in _SCANS:
        launch = quadratic.Launch(*layout)
        yield quadratic.Launches(tokens, launch, launch, launch, launch, 4)


def _norm_calls(model: AiM, batch: int, device: torch.device, layouts: bool) -> Iterator[Timed]:
    from aimamba.ops.norm.triton import modulated  # noqa: PLC0415 - imports Triton

    length, width = model.config.num_tokens, model.config.width
    made = functools.partial(torch.randn, device=device)
    residual, weight = made(batch, length, width), made(width)
    mixed, dhidden = (made(batch, length, width).to(DTYPE) for _ in range(2))
    shift, scale, gate = made(batch, 3, width).to(DTYPE).unbind(1)
    size = batch * length * width

    def forward(launch: Any, before: Any) -> Any:
        return modulated.normalise(residual, mixed, gate, weight, scale, shift, before, DTYPE, 1e-5, launch=launch)

    for name, before in (("norm between blocks", None), ("last norms", weight)):
        for launch in _NORMS if layouts else [modulated.FORWARD]:
            yield name, list(launch), 12 * size, functools.partial(forward, modulated.Launch(*launch), before)
        new, _, inverses = forward(modulated.FORWARD, before)
        dnew = residual if before is None else None
        for launch in _NORMS_BACKWARD if layouts else [modulated.BACKWARD]:
            call = functools.partial(
                modulated.normalise_backward, dnew, dhidden, new, mixed, gate, weight, scale, before, inverses,
                launch=modulated.Launch(*launch),
            )  # fmt: skip
            yield f"{name}, backward", list(launch), (18 if before is None else 14) * size, call


def _product_calls(model: AiM, batch: int, device: torch.device) -> Iterator[Timed]:
    """Yield the products of a block and of the head by torch, forward and for both gradients, for comparison."""
    mixer, config = model.blocks[0].mixer, model.config
    tokens = batch * config.num_tokens
    shapes = {"in_proj": mixer.in_proj.weight.shape, "out_proj": mixer.out_proj.weight.shape}
    for name, (outputs, inputs) in (shapes | {"head": (config.vocab_size, config.width)}).items():
        count = min(tokens, _LOSS_TOKENS) if name == "head" else tokens
        x, y, weight = (
            torch.randn(shape, device=device, dtype=DTYPE)
            for shape in ((count, inputs), (count, outputs), (outputs, inputs))
        )
        size = 2 * (x.numel() + y.numel() + weight.numel())
        yield name, "torch", size, functools.partial(torch.matmul, x, weight.t())
        yield f"{name}, gradient of inputs", "torch", size, functools.partial(torch.matmul, y, weight)
        yield f"{name}, gradient of weights", "torch", size, functools.partial(torch.matmul, y.t(), x)


def _loss_calls(model: AiM, device: torch.device, layouts: bool) -> Iterator[Timed]:
    from aimamba.ops.loss.triton import cross_entropy  # noqa: PLC0415 - imports Triton

    codes = model.config.vocab_size
    logits = torch.randn(_LOSS_TOKENS, codes, device=device).to(DTYPE)
    targets = torch.randint(codes, (_LOSS_TOKENS,), device=device)
    for warps in (4, 8, 16, 32) if layouts else (None,):
        call = functools.partial(
            cross_entropy.cross_entropy_, logits, targets, 1 / _LOSS_TOKENS, learning=True, warps=warps
        )
        yield "cross entropy", "default" if warps is None else warps, 4 * logits.numel(), call
