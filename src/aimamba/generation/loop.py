"""The decoding loop: a Python generator that yields after each token, so it can be watched, stopped or previewed.

Shape letters: B images, L tokens of an image, R rows of the state (conditional, then unconditional ones).
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.devices import send
from aimamba.errors import CheckpointError, ConfigError
from aimamba.generation.engines import Engine, make_engine
from aimamba.generation.plan import Labels, SamplingPlan, check_codes, check_labels, uniform_numbers
from aimamba.generation.sampling import SamplingConfig
from aimamba.inference import Inference
from aimamba.models import AiM

DAMAGED = "the generator's logits contain NaN or infinity: its weights are damaged, or its dtype is too narrow"


@Inference()
def generate(
    model: AiM,
    labels: Labels,
    config: SamplingConfig | Sequence[SamplingConfig] = SamplingConfig(),  # noqa: B008 - frozen
    *,
    seeds: Sequence[int] | None = None,
    prefix: Tensor | None = None,
    negatives: Float[Tensor, "b p1 d"] | None = None,
    position_shift: int | None = None,
    engine: Engine | str = "auto",
) -> Iterator[Tensor]:
    """Generate the tokens of images, one at a time for the whole batch.

    An image depends only on the weights and on its own label, settings and seed, not on the rest of the batch.

    Args:
        model: The generator, in evaluation mode.
        labels: A class for each image, where ``num_classes`` is the null class, (B,); or weights of the classes for
            each image, (B, C) or with the null class (B, C + 1): a mixture; or openings (B, P + 1, D), as of captions,
            from ``AiM.openings``.
        config: Settings for all images, or one for each.
        seeds: A seed for each image. By default, image i has the config's seed plus i, or its own config's seed.
        prefix: The first tokens of each image, if they are known: (B, k), or rows of the grid (B, r, w); or one (1, k)
            for all.
        negatives: Openings of the unconditional rows, one for each image, in place of the null class.
        position_shift: Overrides the model's ``decode_position_shift``.
        engine: Computes the steps: a name of ``aimamba.generation.engines``, or an engine for this model from
            ``make_engine``, which can be used again.

    Yields:
        The tokens so far, (B, t) for t = 1 ... L: a view of a tensor that is being filled.

    Raises:
        DataError: A label is out of range or the prefix does not fit.
        ConfigError: The numbers of labels, configs and seeds differ; a seed is not in [0, 2^64); a mixture or a
            negative class does not fit; or the engine is unknown or cannot decode this model.
        CheckpointError: After the last token, if the logits contain NaN or infinity, as with damaged weights. With an
            engine that queues its steps, this check is the only wait for the device, besides one at the end of an
            interval of guidance.
    """
    count, length = len(labels), model.config.num_tokens
    check_labels(model, labels)
    configs, seeds = each_config(config, seeds, count)
    plan = SamplingPlan(model, labels, configs, negatives)
    [uniforms] = uniform_numbers(model, seeds)  # (L, B)
    known = None if prefix is None else send(check_codes(model, prefix, count, "prefix"), plan.device)
    stepper = make_engine(model, engine) if isinstance(engine, str) else engine
    state = stepper.init_state(plan.rows, position_shift=position_shift)
    inputs = torch.empty(0)
    with torch.inference_mode(mode=False):  # so that the caller may train on them
        codes = torch.empty(count, length, dtype=torch.long, device=plan.device)
    for t in range(length):
        logits = stepper.step(inputs, state) if t else plan.open(stepper, state)
        if known is not None and t < known.shape[1]:
            codes[:, t] = known[:, t]
        else:
            codes[:, t] = plan.sample(stepper, t, logits, uniforms[t])
        if (left := plan.leave(state, t + 1)) is not state:
            check_logits(logits)
            state = left
        inputs = plan.inputs(codes[:, t], state.rows)
        if t + 1 == length:
            del state, left  # the next batch may use its memory, however long the caller keeps this generator
        yield codes[:, : t + 1]
    check_logits(logits)  # once, at the end: a state that is not finite stays so


def each_config(
    config: SamplingConfig | Sequence[SamplingConfig], seeds: Sequence[int] | None, count: int
) -> tuple[list[SamplingConfig], list[int]]:
    """Return settings and seed of each image; see ``generate``.

    Raises:
        ConfigError: There are not as many as images.
    """
    shared = isinstance(config, SamplingConfig)
    configs = [config] * count if isinstance(config, SamplingConfig) else list(config)
    if seeds is None:
        seeds = [each.seed + (i if shared else 0) for i, each in enumerate(configs)]
    if not len(configs) == len(seeds) == count:
        raise ConfigError(f"{count} labels, {len(configs)} configs and {len(seeds)} seeds: expected equal numbers")
    return configs, list(seeds)


def check_logits(logits: Tensor) -> None:
    """Check that the generator's weights are sound. Waits for the device.

    Raises:
        CheckpointError: The logits contain NaN or infinity.
    """
    if not bool(logits.isfinite().all()):
        raise CheckpointError(DAMAGED)
