"""The GPUs that plans know, and how fast training was measured to be on them.

To add a measurement, add a line to ``MEASURED``; to add a GPU, one to ``CARDS``.
"""

import re
from typing import NamedTuple

from aimamba.errors import ConfigError, suggest

GIB = 2**30


class Card(NamedTuple):
    """A GPU.

    Attributes:
        name: How plans call it.
        memory: Bytes that PyTorch can use at most.
        rate: Its data sheet's dense bfloat16 rate in TFLOP/s; None where only the memory is given.
    """

    name: str
    memory: int
    rate: float | None


# What torch.cuda.get_device_properties(...).total_memory returns is a little less than the name says.
CARDS = {
    card.name: card
    for card in (
        Card("h100-80gb", round(79.1 * GIB), 989.0),
        Card("h200-141gb", round(139.8 * GIB), 989.0),
        Card("a100-80gb", round(79.1 * GIB), 312.0),
        Card("a100-40gb", round(39.4 * GIB), 312.0),
        Card("a800-80gb", round(79.1 * GIB), 312.0),
        Card("rtx4090-24gb", round(23.5 * GIB), 165.0),
        Card("rtx3090-24gb", round(23.6 * GIB), 71.0),
        Card("l40s-48gb", round(44.4 * GIB), 362.0),
    )
}


class Measured(NamedTuple):
    """How many codes a second a GPU trained.

    Attributes:
        preset: The generator.
        parameters: Its parameters.
        card: The GPU.
        tokens_per_second: Codes a second, on one GPU.
        what: What was measured, and where the figure is from.
        date: When.
        recorded: Whether the step was a CUDA graph.
    """

    preset: str
    parameters: int
    card: str
    tokens_per_second: float
    what: str
    date: str
    recorded: bool = False


_SOURCE = "bfloat16, 32 x 256 codes, benchmarks/training.py"
MEASURED = (
    Measured(
        "aim-b",
        147_622_080,
        "h200-141gb",
        292_000,
        f"whole steps as a CUDA graph, {_SOURCE}",
        "2026-11-28",
        recorded=True,
    ),
    Measured(
        "aim-l",
        349_760_000,
        "h200-141gb",
        68_000,
        f"forward and backward, held up by the CPU, {_SOURCE}",
        "2026-11-28",
    ),
    Measured("aim-xl", 763_291_392, "h200-141gb", 70_400, f"forward and backward, {_SOURCE}", "2026-11-28"),
)
_SAME = 0.02  # two generators whose sizes differ by less are as fast as each other
_HELD_UP = {"aim-l"}  # says more about its CPU than about its GPU: nothing is scaled from it


class Rate(NamedTuple):
    """Codes a second of one GPU.

    Attributes:
        tokens_per_second: The number.
        source: Where it comes from.
        recorded: Whether it is that of a CUDA graph, which several processes cannot record.
    """

    tokens_per_second: float
    source: str
    recorded: bool = False


def find_card(name: str | None, memory: str | None) -> Card:
    """Return the GPU of this name, or one with this memory.

    Args:
        name: A name in ``CARDS``.
        memory: ``48GB`` (10^9 bytes each) or ``48GiB`` (2^30); it replaces that of the GPU.

    Raises:
        ConfigError: There is no such GPU, or the memory is not an amount.
    """
    if name is not None and name not in CARDS:
        raise ConfigError(
            f"unknown GPU {name!r}{suggest(name, CARDS)}; known GPUs: {', '.join(CARDS)}; or give its memory, as in "
            "--memory 48GB"
        )
    card = CARDS[name] if name is not None else None
    if memory is None:
        return card or CARDS["h100-80gb"]
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(GB|GiB)\s*", memory, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"--memory expects an amount such as 48GB or 44.4GiB, got {memory!r}")
    size = float(match[1]) * (GIB if match[2].lower() == "gib" else 10**9)
    return Card(card.name if card else f"a GPU with {memory.strip()}", round(size), card.rate if card else None)


def rate_of(parameters: int, card: Card) -> Rate | None:
    """Return how fast one GPU trains a generator of so many parameters; None if nothing tells.

    A measurement of that size on that GPU, or else of the nearest size, scaled by the parameters and by the GPUs' rates
    in bfloat16.
    """
    if card.rate is None:
        return None
    usable = [
        each
        for each in MEASURED
        if each.preset not in _HELD_UP or (each.card == card.name and _near(each.parameters, parameters))
    ]
    best = min(usable, key=lambda each: (abs(each.parameters / parameters - 1), each.card != card.name))
    of_best = CARDS[best.card].rate
    assert of_best is not None
    tokens, source = best.tokens_per_second, f"{best.what}, {best.date}"
    scaled = []
    if not _near(best.parameters, parameters):
        tokens *= best.parameters / parameters
        scaled.append("parameters")
    if best.card != card.name:
        tokens *= card.rate / of_best
        scaled.append("bfloat16 rates of the GPUs")
    if not scaled:
        return Rate(tokens, f"measured on one {card.name}: {source}", best.recorded)
    origin = f"{best.preset} on one {best.card}: {source}"
    return Rate(tokens, f"an estimate, scaled by the {' and the '.join(scaled)} from {origin}", best.recorded)


def _near(one: int, other: int) -> bool:
    return abs(one / other - 1) <= _SAME
