"""Bounds on the shapes of models: a config from anywhere is checked before anything is built or allocated."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aimamba.config import check

_MOST_PARAMETERS = 20_000_000_000  # the paper's largest model has 1.3 billion; 80 GB in float32

_GENERATOR = {
    "width": 1 << 16,
    "num_blocks": 1 << 10,
    "vocab_size": 1 << 20,
    "num_tokens": 1 << 16,
    "num_classes": 1 << 20,
    "adaln_groups": 1 << 10,
    "state_size": 1 << 12,
    "head_width": 1 << 16,
    "conv_width": 1 << 6,
    "chunk_size": 1 << 16,
}
_TOKENIZER = {
    "channels": 1 << 14,
    "patch_size": 1 << 8,
    "num_res_blocks": 1 << 6,
    "z_channels": 1 << 14,
    "codebook_size": 1 << 20,
    "codebook_dim": 1 << 14,
    "norm_groups": 1 << 14,
}
_WHOLE = 1e-6
_MOST_LEVELS, _LARGEST_MULTIPLE = 12, 1 << 8
_MOST_BITS, _MOST_LEVELS_OF_A_CHANNEL, _MOST_SHOWN = 20, 1 << 10, 20


def check_generator(config: Any) -> None:
    """Check that every size of an ``AiMConfig`` and its number of parameters lie within the bounds.

    Raises:
        ConfigError: One does not; the message names the field.
    """
    _check_sizes(config, _GENERATOR)
    check(config.expand > 0, f"AiMConfig: expand must be above 0, got {config.expand}")
    check(config.expand <= 1 << 6, f"AiMConfig: expand must be at most {1 << 6}, got {config.expand}")
    check(
        config.inner >= 1 and abs(config.expand * config.width - config.inner) < _WHOLE,
        f"AiMConfig: expand times width {config.width} must be a whole number, got {config.expand * config.width:g}",
    )
    check(
        0 < config.feed_forward <= 1 << 6,
        f"AiMConfig: feed_forward must be above 0 and at most {1 << 6}, got {config.feed_forward}",
    )
    _check_total(config, count_generator(config))


def check_tokenizer(config: Any) -> None:
    """Check that every size of a ``VQConfig`` and its number of parameters lie within the bounds.

    Raises:
        ConfigError: One does not; the message names the field.
    """
    _check_sizes(config, _TOKENIZER)
    multiples = config.channel_mult
    check(
        1 <= len(multiples) <= _MOST_LEVELS and all(1 <= mult <= _LARGEST_MULTIPLE for mult in multiples),
        f"VQConfig: channel_mult needs 1 to {_MOST_LEVELS} levels and multiples from 1 to {_LARGEST_MULTIPLE}, "
        f"got {list(multiples[: _MOST_LEVELS + 1])}",
    )
    check(
        0 <= config.commitment_weight < math.inf,
        f"VQConfig: commitment_weight must be 0 or a positive number, got {config.commitment_weight}",
    )
    if config.decoder_channels is not None:
        _check_sizes(config, {"decoder_channels": _TOKENIZER["channels"]})
    _check_codes(config)
    _check_total(config, count_tokenizer(config))


def _check_codes(config: Any) -> None:
    """Check that the number of codes is that of the quantiser."""
    size, width, levels = config.codebook_size, config.codebook_dim, config.levels
    if config.quantizer == "lfq":
        check(
            width <= _MOST_BITS and size == 1 << width,
            f"VQConfig: quantizer 'lfq' with codebook_dim {width} has 2^{width} codes, but codebook_size is {size:,}; "
            f"codebook_dim must be its logarithm to the base 2, at most {_MOST_BITS}",
        )
    if config.quantizer != "fsq":
        check(levels is None, f"VQConfig: levels are of the quantizer 'fsq', not {config.quantizer!r}; leave them out")
        return
    check(levels is not None, "VQConfig: quantizer 'fsq' needs levels, such as [8, 5, 5, 5] for 1,000 codes")
    check(
        len(levels) == width,
        f"VQConfig: levels need one number for each of the codebook_dim {width} channels, got {len(levels)}; set "
        f"codebook_dim to {len(levels)}",
    )
    check(
        all(3 <= count <= _MOST_LEVELS_OF_A_CHANNEL for count in levels),
        f"VQConfig: levels must lie between 3 and {_MOST_LEVELS_OF_A_CHANNEL} (two are those of 'lfq'), got "
        f"{list(levels[:_MOST_SHOWN])}",
    )
    total = math.prod(levels)
    check(
        total == size,
        f"VQConfig: levels {list(levels[:_MOST_SHOWN])} make {total:,} codes, but codebook_size is {size:,}; set it to "
        "their product",
    )


def count_generator(config: Any) -> int:
    """Return the number of parameters of an ``AiM`` of this config, without building it."""
    width, blocks = config.width, config.num_blocks
    mixers = sum(count * _count_mixer(kind, config) for kind, count in Counter(config.block_mixers).items())
    projection = 3 * width * (width + 1)
    groups = config.adaln_groups if config.adaln == "group" else 1
    modulation = {"none": 0, "block": blocks * projection}.get(config.adaln, groups * projection + 3 * blocks * width)
    rows = config.vocab_size + config.num_classes + 1 + (config.num_tokens + 1 if config.positions == "learned" else 0)
    captions = 0 if config.text is None else _count_captions(config.text, width)
    return mixers + modulation + width * (rows + blocks + 2) + 2 * width * (width + 1) + captions


def _count_mixer(kind: str, config: Any) -> int:
    width, inner = config.width, config.inner
    heads = inner // config.head_width
    if kind == "attention":
        return 4 * width**2
    if kind == "feed-forward":
        return 3 * width * round(config.feed_forward * width)
    if kind == "gated-deltanet":
        convolved = inner + 2 * heads * config.state_size
        mixer = width * (inner + convolved + 2 * heads) + convolved * config.conv_width + 2 * heads + config.head_width
        return mixer + inner * width
    if kind == "mamba3":
        projected = 2 * inner + 2 * config.state_size + 3 * heads + config.state_size // 4
        return width * (projected + inner) + 2 * (heads + 1) * (config.state_size + 1) - 2
    convolved = inner + 2 * config.state_size
    mixer = width * (inner + convolved + heads) + convolved * (config.conv_width + 1) + 3 * heads + inner
    return mixer + inner * width


def _count_captions(text: Any, width: int) -> int:
    inner = text.width
    words = (text.features + 1) * inner if text.features else text.vocabulary * inner
    blocks = text.blocks * inner * (12 * inner + 5 + 2)
    ways = (inner + 1) * width * ((text.reach != "prefix") + (text.prefix > 0)) + text.prefix * width
    return words + (text.tokens + 1) * inner + blocks + inner + ways + text.ngrams * width


def count_tokenizer(config: Any) -> int:
    """Return the number of parameters of a ``VQModel`` of this config, without building it."""
    latent, code, pixels = config.z_channels, config.codebook_dim, 3 * config.patch_size**2
    logits = config.codebook_size if config.quantizer == "gumbel" else code
    total = _convolution(latent, logits, 1) + _convolution(code, latent, 1)
    total += config.codebook_size * code if config.quantizer in ("learned", "gumbel") else 0
    for number, channels in enumerate(config.widths):
        way = [channels * mult for mult in config.channel_mult][:: -1 if number else 1]
        blocks, coarse = config.num_res_blocks + number, channels * config.channel_mult[-1]
        first, stem, last = (latent, coarse, pixels) if number else (pixels, channels, latent)
        attention = 4 * _convolution(coarse, coarse, 1) + 2 * coarse if config.attention else 0
        total += _convolution(first, stem, 3) + _convolution(way[-1], last, 3) + 2 * way[-1]
        for inputs, outputs in zip([stem, *way], way, strict=False):
            total += _residual(inputs, outputs) + (blocks - 1) * _residual(outputs, outputs)
        total += sum(_convolution(width, width, 3) for width in way[:-1])
        total += blocks * attention + attention + 2 * _residual(coarse, coarse)
    return total


def _convolution(inputs: int, outputs: int, side: int) -> int:
    return outputs * (inputs * side**2 + 1)


def _residual(inputs: int, outputs: int) -> int:
    shortcut = _convolution(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + 2 * outputs + _convolution(inputs, outputs, 3) + _convolution(outputs, outputs, 3) + shortcut


def _check_sizes(config: Any, largest: Mapping[str, int]) -> None:
    for name, most in largest.items():
        value = getattr(config, name)
        check(value >= 1, f"{type(config).__name__}: {name} must be at least 1, got {value}")
        check(value <= most, f"{type(config).__name__}: {name} must be at most {most:,}, got {value:,}")


def _check_total(config: Any, total: int) -> None:
    check(
        total <= _MOST_PARAMETERS,
        f"{type(config).__name__}: this model would have {total:,} parameters, more than {_MOST_PARAMETERS:,}; "
        "make it smaller",
    )
