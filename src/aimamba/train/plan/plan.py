"""A plan of a training on several GPUs: memory, the largest batch, hours, and the command.

Everything is computed before there is a GPU; see ``outline`` and ``on_paper``.
"""

import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from aimamba.config import check
from aimamba.errors import ConfigError
from aimamba.train.contrastive import check_pairs
from aimamba.train.frozen import check_loop
from aimamba.train.parallel.layout import check_shares
from aimamba.train.plan.cards import GIB, Card, Rate, rate_of
from aimamba.train.plan.on_paper import Needs, Place
from aimamba.train.plan.outline import Outline, outline
from aimamba.train.recipe import Recipe

_WIDE, _NARROW = 4, 2  # bytes of a number
_RESERVED = 1.5 * GIB  # CUDA's context, NCCL's buffers, and the tokenizer that renders the sheets
_USABLE = 0.96  # of the rest; blocks of freed memory do not always fit what is needed next
_OF_A_NODE = 8
_MOST_GPUS = 4096
_MOST_AT_ONCE = 1 << 16
_AGAIN = 4 / 3  # times as many operations where activations are computed again


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step.

    Attributes:
        parameters: Weights in float32, and what is not trained.
        gradients: Their gradients.
        optimizer: AdamW's two moments.
        average: The moving average.
        narrow: Weights in bfloat16; with several processes, weights that are gathered for a step.
        activations: What the forward pass keeps, and the logits of a slice.
        saved: Gradients that are not there yet when activations are at their peak.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    narrow: int
    activations: int
    saved: int

    @property
    def total(self) -> int:
        """The most at once."""
        sum_of_all = self.parameters + self.gradients + self.optimizer + self.average + self.narrow + self.activations
        return sum_of_all - self.saved


@dataclass(frozen=True)
class Choice:
    """How much fits with or without computing activations again.

    Attributes:
        checkpointing: Whether they are.
        largest: Most images that a GPU can take at once.
        at_once: Most that divide its share of the batch; 0 if nothing fits.
        memory: With ``at_once`` images, or with one if nothing fits.
    """

    checkpointing: bool
    largest: int
    at_once: int
    memory: Memory


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        outline: What is trained.
        card: On what.
        gpus: Number of GPUs.
        shard: Over how many of them weights, gradients, moments and average are split.
        batch: Images of a step.
        steps: Number of steps.
        choices: What fits, without activation checkpointing and, for a generator, with it.
        chosen: The choice that the command takes.
        accumulation: Parts into which the command splits a batch.
        rate: Codes a second of one GPU, or None.
    """

    outline: Outline
    card: Card
    gpus: int
    shard: int
    batch: int
    steps: int
    choices: tuple[Choice, ...]
    chosen: Choice
    accumulation: int
    rate: Rate | None

    @property
    def hours(self) -> float | None:
        """Hours of all steps, if no GPU ever waits for another one."""
        if self.rate is None:
            return None
        tokens = self.steps * self.batch * self.outline.tokens * self.outline.work
        slower = _AGAIN if self.chosen.checkpointing else 1.0
        return slower * tokens / self.rate.tokens_per_second / self.gpus / 3600


def make_plan(recipe: Recipe, *, gpus: int, card: Card, shard: int = 1, tokens_per_second: float | None = None) -> Plan:
    """Plan the training of a recipe.

    Args:
        recipe: The recipe.
        gpus: Number of GPUs.
        card: Their kind.
        shard: Over how many of them weights, gradients, moments and average are split; it divides ``gpus``.
        tokens_per_second: Codes a second that one GPU trains, where it is known.

    Raises:
        ConfigError: A number is out of range, a setting is wrong, or not even one image fits.
        CheckpointError: A model that the recipe names is damaged.
    """
    check(1 <= gpus <= _MOST_GPUS, f"--gpus must be 1 to {_MOST_GPUS:,}, got {gpus}")
    check(shard >= 1 and gpus % shard == 0, f"--shard must divide --gpus = {gpus}, got {shard}")
    check(
        tokens_per_second is None or 0 < tokens_per_second < math.inf,
        f"--tokens-per-second must be positive, got {tokens_per_second}",
    )
    batch = recipe.fit.batch_size
    check(batch % gpus == 0, f"fit.batch_size must be a multiple of --gpus = {gpus}, got {batch}; change one of them")
    if gpus > 1:
        check_shares(replace(recipe.fit, accumulation=1), gpus)
    trained = outline(recipe)
    place = Place(cuda=True, narrow=recipe.fit.precision != "float32", memory=card.memory)
    planner = _Planner(recipe, trained, place, gpus, shard)
    own = bool(recipe.task.get("checkpointing", False))
    kinds = [False, True] if recipe.stage == "generator" else [False]
    try:
        choices = tuple(planner.choose(batch // gpus, kind, card) for kind in kinds)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ConfigError("the recipe has tensors of more bytes than 64 bits can count; make it smaller") from error
    fitting = [choice for choice in choices if choice.at_once]
    if not fitting:
        least = min(choice.memory.total for choice in choices)
        raise ConfigError(
            f"not even one image fits: {card.name} has {card.memory / GIB:.1f} GiB, of which "
            f"{usable(card) / GIB:.1f} can be planned with, and {least / GIB:.1f} are needed; raise --shard, or take "
            "larger GPUs"
        )
    chosen = next((choice for choice in fitting if choice.checkpointing == own), fitting[-1])
    check(
        recipe.fit.cuda_graph is not True or chosen.at_once == batch // gpus,
        f"fit.cuda_graph records a batch in one part, and of {batch // gpus:,} images {chosen.at_once:,} fit at once; "
        "set it to false",
    )
    accumulation = batch // gpus // chosen.at_once
    objective = recipe.task.get("objective", "likelihood")
    if objective != "likelihood":
        check_loop(objective, recipe.fit)
    if objective == "cca":
        check_pairs(replace(recipe.fit, accumulation=accumulation))
    given = None if tokens_per_second is None else Rate(tokens_per_second, "given")
    known = rate_of(trained.parameters, card) if recipe.stage == "generator" and place.narrow else None
    return Plan(
        outline=trained,
        card=card,
        gpus=gpus,
        shard=shard,
        batch=batch,
        steps=recipe.fit.steps,
        choices=choices,
        chosen=chosen,
        accumulation=accumulation,
        rate=given or known,
    )


def usable(card: Card) -> int:
    """Return the bytes of a GPU that a plan may fill."""
    return max(0, round((card.memory - _RESERVED) * _USABLE))


class _Planner:
    def __init__(self, recipe: Recipe, trained: Outline, place: Place, gpus: int, shard: int) -> None:
        @cache
        def trace(images: int, checkpointing: bool) -> Needs:
            return trained.trace(images, place, checkpointing)

        self._trace, self._outline, self._narrow = trace, trained, place.narrow
        self._average, self._gpus, self._shard = recipe.fit.ema_decay > 0, gpus, shard

    def choose(self, share: int, checkpointing: bool, card: Card) -> Choice:
        """Return what fits of a GPU's share of a batch."""

        def memory(images: int) -> Memory:
            return step_memory(
                self._outline,
                self._trace(images, checkpointing),
                average=self._average,
                narrow=self._narrow,
                gpus=self._gpus,
                shard=self._shard,
                whole=images >= share,
            )

        def total(images: int) -> int:
            return memory(images).total

        limit = usable(card)
        largest = _largest(total, limit, share)
        if largest < share and total(share) <= limit:  # gradients of a whole batch need not be there before
            largest = share
        at_once = max((n for n in _divisors(share) if n <= largest), default=0)
        return Choice(checkpointing, largest, at_once, memory(max(1, at_once)))


def step_memory(
    trained: Outline, needed: Needs, *, average: bool, narrow: bool, gpus: int = 1, shard: int = 1, whole: bool = True
) -> Memory:
    """Return the memory of one device.

    With several processes (``train.parallel.spread``) weights are gathered for a step: those outside of the blocks in
    float32, all the time, and the matrices of the blocks in bfloat16, with sharding two blocks at a time. Gradients of
    parts of a batch are added up whole, and those of a whole batch are split as soon as a block has them.

    Args:
        trained: What is trained.
        needed: What a forward and a backward pass need.
        average: Whether there is a moving average.
        narrow: Whether products are bfloat16.
        gpus: Number of devices.
        shard: Over how many of them weights, gradients, moments and average are split.
        whole: Whether a device takes its share of a batch at once. Otherwise it adds the gradients of parts, and they
            are there from the second part on.
    """
    learning, gathered, saved = _WIDE * trained.trained, needed.casts, 0
    if whole and gpus == 1:  # gradients come while activations go
        saved = max(0, needed.activations + needed.casts + needed.gradients - needed.peak)
    if gpus > 1:
        width, held = _NARROW if narrow else _WIDE, trained.blocks if shard == 1 else 2 * trained.largest
        outside = max(trained.trained, trained.parameters) - trained.blocks
        # Autocast rounds what is outside once more; and a block's gradients exist twice while they are summed up.
        gathered = width * held + (_WIDE + (_NARROW if narrow else 0)) * outside + (width + _WIDE) * trained.largest
    return Memory(
        parameters=-(-_WIDE * trained.parameters // shard) + trained.frozen + (trained.shared if gpus > 1 else 0),
        gradients=-(-learning // shard) if whole else learning,
        optimizer=-(-2 * learning // shard),
        average=-(-_WIDE * trained.averaged // shard) if average else 0,
        narrow=gathered,
        activations=needed.activations,
        saved=saved,
    )


def _largest(total: Callable[[int], int], limit: int, share: int) -> int:
    """Return about the largest number of images whose total stays within the limit, 0 if none.

    At most a hundredth is left out. The total is nearly linear in the images, so a few calls do.
    """
    fits, fails = 0, _MOST_AT_ONCE
    points = [(images, total(images)) for images in (1, max(2, share))]
    for images, used in points:
        if used <= limit:
            fits = images
        else:
            fails = min(fails, images)
    while fails - fits > max(1, fits // 100):
        (one, of_one), (other, of_other) = points[-2:]
        slope = max(1.0, (of_other - of_one) / (other - one))
        guess = min(max(math.floor(other + (limit - of_other) / slope), fits + 1), fails - 1)
        used = total(guess)
        points.append((guess, used))
        fits, fails = (guess, fails) if used <= limit else (fits, guess)
        if used <= limit and used + slope * max(1, guess // 100) > limit:
            break
    return fits


def _divisors(number: int) -> Iterable[int]:
    return (n for n in range(1, number + 1) if number % n == 0)


def command(plan: Plan, recipe: str, options: Sequence[str] = ()) -> str:
    """Return the command that starts the training, over several lines.

    Args:
        plan: The plan.
        recipe: The recipe as it was named.
        options: Further options of ``aimamba train``.
    """
    words = [*options]
    if plan.gpus > 1:
        words += ["--set", f"parallel.replicate={plan.gpus // plan.shard}", "--set", f"parallel.shard={plan.shard}"]
    words += ["--set", f"fit.accumulation={plan.accumulation}"]
    if len(plan.choices) > 1:
        words += ["--set", f"task.checkpointing={'true' if plan.chosen.checkpointing else 'false'}"]
    start = "aimamba train"
    if plan.gpus > 1:
        of_node = max(n for n in _divisors(plan.gpus) if n <= _OF_A_NODE)
        nodes = plan.gpus // of_node
        start = f"torchrun --standalone --nproc-per-node {plan.gpus} -m aimamba train"
        if nodes > 1:
            start = (
                f"torchrun --nnodes {nodes} --nproc-per-node {of_node} --rdzv-backend c10d "
                "--rdzv-endpoint $HEAD_NODE:29500 -m aimamba train"
            )
    return f"{start} {shlex.quote(recipe)} {shlex.join(words)}"
