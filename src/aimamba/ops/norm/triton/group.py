"""Group normalisation of images that are channels last, in two Triton kernels: see ``aimamba.ops.norm.group``.

The pixels of an image come in parts, one for each program. The first kernel finds mean and sum of squared deviations of
every group in every part; the second puts the parts of an image together, normalises, scales, shifts and applies SiLU.
Deviations are from running means (Welford), so a large mean costs no accuracy. There are no atomic additions: results
are the same in every run, and do not depend on the other images of a batch.

Shape letters: B images, N pixels of an image, G groups, S channels of a group, C = G S channels.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.triton.functions import silu as swish


class Launch(NamedTuple):
    """How the kernels are launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        numbers: Numbers of a tile, which a program takes at once.
        parts: Parts of an image at most.
        warps: Warps of a program.
        stages: Tiles that are on their way from memory while one is computed.
    """

    numbers: int
    parts: int
    warps: int
    stages: int


DEFAULT = Launch(numbers=4096, parts=64, warps=8, stages=3)


@triton.jit
@no_type_check
def _channels(G: tl.constexpr, S: tl.constexpr, WIDE_G: tl.constexpr, WIDE_S: tl.constexpr):
    """Return the channels in groups of a power of two, and which of them there are."""
    lane = tl.arange(0, WIDE_G * WIDE_S)
    if WIDE_S == S:
        return lane, lane < G * S
    return lane // WIDE_S * S + lane % WIDE_S, (lane // WIDE_S < G) & (lane % WIDE_S < S)


@triton.jit
@no_type_check
def _sum_of_groups(x, WIDE_G: tl.constexpr, WIDE_S: tl.constexpr):
    return tl.sum(tl.reshape(x, (WIDE_G, WIDE_S)), axis=1)


@triton.jit
@no_type_check
def _of_channels(x, WIDE_G: tl.constexpr, WIDE_S: tl.constexpr):
    return tl.reshape(tl.broadcast_to(x[:, None], (WIDE_G, WIDE_S)), (WIDE_G * WIDE_S,))


@triton.jit
@no_type_check
def _moments_kernel(
    x, moments, N, span,
    G: tl.constexpr, S: tl.constexpr, WIDE_G: tl.constexpr, WIDE_S: tl.constexpr,
    PIXELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    part, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel, real = _channels(G, S, WIDE_G, WIDE_S)
    row = tl.arange(0, PIXELS)
    x += image * N * (G * S)
    first = part * span
    last = tl.minimum(first + span, N)
    # Every place of a tile has a mean and squared deviations of its own until the last tile.
    mean = tl.zeros((PIXELS, WIDE_G * WIDE_S), dtype=tl.float32)
    squares = tl.zeros((PIXELS, WIDE_G * WIDE_S), dtype=tl.float32)
    for turn in tl.range(tl.cdiv(last - first, PIXELS), num_stages=STAGES):
        pixel = first + turn * PIXELS + row
        inside = (pixel < last)[:, None] & real[None, :]
        value = tl.load(x + pixel[:, None] * (G * S) + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        apart = tl.where(inside, value - mean, 0.0)
        mean += apart * (1.0 / (turn + 1))
        squares += apart * (value - mean)
    seen = (tl.maximum(last - first - row + PIXELS - 1, 0) // PIXELS).to(tl.float32)[:, None]
    count = ((last - first) * S).to(tl.float32)
    centre = _sum_of_groups(tl.sum(mean * seen, axis=0), WIDE_G, WIDE_S) / count
    apart = tl.where(real[None, :], mean - _of_channels(centre, WIDE_G, WIDE_S)[None, :], 0.0)
    total = _sum_of_groups(tl.sum(squares + seen * apart * apart, axis=0), WIDE_G, WIDE_S)
    group = tl.arange(0, WIDE_G)
    place = moments + (image * tl.num_programs(0) + part) * 2 * G + group
    tl.store(place, centre, mask=group < G)
    tl.store(place + G, total, mask=group < G)


@triton.jit
@no_type_check
def _normalise_kernel(
    x, weight, bias, moments, out, N, span, eps,
    G: tl.constexpr, S: tl.constexpr, WIDE_G: tl.constexpr, WIDE_S: tl.constexpr,
    PARTS: tl.constexpr, PIXELS: tl.constexpr, STAGES: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    # The last pixels come first: those that the first kernel has read last may still be in the cache.
    parts = tl.num_programs(0)
    part, image = parts - 1 - tl.program_id(0), (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    each, group = tl.arange(0, PARTS), tl.arange(0, WIDE_G)
    known = (each < parts)[:, None] & (group < G)[None, :]
    place = moments + (image * parts + each)[:, None] * (2 * G) + group[None, :]
    means = tl.load(place, mask=known, other=0.0)
    squares = tl.load(place + G, mask=known, other=0.0)
    counts = (tl.maximum(tl.minimum(span, N - each * span), 0) * S).to(tl.float32)[:, None]
    whole = tl.sum(counts, axis=0)
    mean = tl.sum(means * counts, axis=0) / whole
    apart = means - mean[None, :]
    variance = tl.sum(squares + counts * apart * apart, axis=0) / whole
    channel, real = _channels(G, S, WIDE_G, WIDE_S)
    scale = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    scale = (scale * _of_channels(tl.rsqrt(variance + eps), WIDE_G, WIDE_S))[None, :]
    centre = _of_channels(mean, WIDE_G, WIDE_S)[None, :]
    row = tl.arange(0, PIXELS)
    x += image * N * (G * S)
    out += image * N * (G * S)
    first = part * span
    last = tl.minimum(first + span, N)
    for turn in tl.range(tl.cdiv(last - first, PIXELS), num_stages=STAGES):
        pixel = first + turn * PIXELS + row
        inside = (pixel < last)[:, None] & real[None, :]
        offset = pixel[:, None] * (G * S) + channel[None, :]
        y = (tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) - centre) * scale + shift
        if SILU:
            y = swish(y)
        tl.store(out + offset, y.to(out.dtype.element_ty), mask=inside)


def group_norm(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    *,
    groups: int,
    eps: float,
    silu: bool,
    launch: Launch = DEFAULT,
) -> Float[Tensor, "b c h w"]:
    """Compute ``aimamba.ops.norm.group.group_norm``; the result is channels last."""
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    sizes = sizes_of(channels, groups, launch)
    pixels, tile = height * width, sizes["PIXELS"]
    span = triton.cdiv(triton.cdiv(pixels, tile), launch.parts) * tile  # pixels of a part: whole tiles
    parts = triton.cdiv(pixels, span)
    moments = torch.empty(batch, parts, 2 * groups, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _moments_kernel[(parts, batch)](x, moments, pixels, span, **sizes, num_warps=launch.warps)
        _normalise_kernel[(parts, batch)](
            x, weight.contiguous(), bias.contiguous(), moments, out, pixels, span, eps,
            **sizes, PARTS=triton.next_power_of_2(parts), SILU=silu, num_warps=launch.warps,
        )  # fmt: skip
    return out


def sizes_of(channels: int, groups: int, launch: Launch = DEFAULT) -> dict[str, int]:
    """Return the sizes that both kernels are compiled for."""
    wide_groups, wide_size = triton.next_power_of_2(groups), triton.next_power_of_2(channels // groups)
    return {
        "G": groups,
        "S": channels // groups,
        "WIDE_G": wide_groups,
        "WIDE_S": wide_size,
        "PIXELS": max(launch.numbers // (wide_groups * wide_size), 1),
        "STAGES": launch.stages,
    }
