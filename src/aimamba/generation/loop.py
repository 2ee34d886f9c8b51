"""The decoding loop: a Python generator that yields after each token, so it can be watched, stopped or previewed.

Shape letters: B images, L tokens of an image, R rows of the state (conditional, then unconditional ones).
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from aimamba.errors import CheckpointError, ConfigError, DataError
from aimamba.generation.engines import Engine, SamplingEngine, make_engine
from aimamba.generation.sampling import SamplingConfig
from aimamba.models import AiM
from aimamba.ops.sampling.logits import Setting, guided_sample, uniform_dtype
from aimamba.seeds import seeded


@torch.inference_mode()
def generate(
    model: AiM,
    labels: Int[Tensor, " b"],
    config: SamplingConfig | Sequence[SamplingConfig] = SamplingConfig(),  # noqa: B008 - frozen
    *,
    seeds: Sequence[int] | None = None,
    prefix: Int[Tensor, "_ k"] | None = None,
    position_shift: int | None = None,
    engine: Engine | str = "auto",
) -> Iterator[Tensor]:
    """Generate the tokens of images, one at a time for the whole batch.

    An image depends only on the weights and on its own label, settings and seed, not on the rest of the batch.

    Args:
        model: The generator, in evaluation mode.
        labels: A class for each image; ``num_classes`` is the null class.
        config: Settings for all images, or one for each.
        seeds: A seed for each image. By default, image i has the config's seed plus i, or its own config's seed.
        prefix: The first tokens of each image, if they are known.
        position_shift: Overrides the model's ``decode_position_shift``.
        engine: Computes the steps: a name of ``aimamba.generation.engines``, or an engine for this model from
            ``make_engine``, which can be used again.

    Yields:
        The tokens so far, (B, t) for t = 1 ... L: a view of a tensor that is being filled.

    Raises:
        DataError: A label is out of range or the prefix does not fit.
        ConfigError: The numbers of labels, configs and seeds differ; a seed is not in [0, 2^64); or the engine is
            unknown or cannot decode this model.
        CheckpointError: After the last token, if the logits contain NaN or infinity, as with damaged weights. With an
            engine that queues its steps, this check is the only wait for the device.
    """
    count, length = labels.shape[0], model.config.num_tokens
    shared = config if isinstance(config, SamplingConfig) else None
    configs = [config] * count if isinstance(config, SamplingConfig) else list(config)
    seeds = [each.seed + (i if shared else 0) for i, each in enumerate(configs)] if seeds is None else list(seeds)
    _validate(model, labels, configs, seeds, prefix)
    device = model.word_embedding.weight.device
    labels = labels.to(device)

    settings: dict[str, Setting]
    if shared is not None:
        settings = {"temperature": shared.temperature, "top_k": shared.top_k, "top_p": shared.top_p}
    else:
        settings = {
            name: torch.tensor([getattr(each, name) for each in configs], device=device)
            for name in ("temperature", "top_k", "top_p")
        }
    # Move everything to the device before the loop, so that no step waits for the device.
    scales = torch.tensor([[each.guidance_at(t, length) for each in configs] for t in range(length)])
    guided = (scales != 1).any(dim=0).nonzero().squeeze(-1)  # images that need an unconditional row
    others = torch.arange(count).index_copy(0, guided, count + torch.arange(len(guided)))
    unconditional_rows = others.to(device) if len(guided) else None
    guided, scales = guided.to(device), scales.to(device)
    uniforms = torch.stack([_uniform_numbers(seed, length) for seed in seeds], dim=1)  # (L, B)
    uniforms = uniforms.to(uniform_dtype(device)).to(device)
    prefix = None if prefix is None else prefix.to(device)

    stepper = make_engine(model, engine) if isinstance(engine, str) else engine
    sample = stepper.guided_sample if isinstance(stepper, SamplingEngine) else guided_sample
    state = stepper.init_state(count + len(guided), position_shift=position_shift)
    null_class = labels.new_full((len(guided),), model.condition.null_class)
    inputs = torch.cat([labels, null_class])  # (R,)
    with torch.inference_mode(mode=False):  # so that the caller may train on them
        codes = torch.empty(count, length, dtype=labels.dtype, device=device)
    known = 0 if prefix is None else prefix.shape[1]
    for t in range(length):
        logits = stepper.step(inputs, state)
        if prefix is not None and t < known:
            codes[:, t] = prefix[:, t]
        else:
            codes[:, t] = sample(
                logits, uniforms[t], unconditional_rows=unconditional_rows, scale=scales[t], **settings
            )
        inputs = torch.cat([codes[:, t], codes[guided, t]])
        yield codes[:, : t + 1]
    if not bool(logits.isfinite().all()):  # once, at the end: a state that is not finite stays so
        raise CheckpointError(
            "the generator's logits contain NaN or infinity: its weights are damaged, or its dtype is too narrow"
        )


def _uniform_numbers(seed: int, length: int) -> Tensor:
    """Return the random numbers of one image, uniform in [0, 1), the same on every device and in every batch."""
    return torch.rand(length, dtype=torch.float64, generator=seeded(seed))


def _validate(
    model: AiM, labels: Tensor, configs: list[SamplingConfig], seeds: list[int], prefix: Tensor | None
) -> None:
    count, null_class = labels.shape[0], model.condition.null_class
    if count == 0:
        raise DataError("no labels given; expected at least one")
    if not len(configs) == len(seeds) == count:
        raise ConfigError(f"{count} labels, {len(configs)} configs and {len(seeds)} seeds: expected equal numbers")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > null_class:
        wrong = lowest if lowest < 0 else highest
        raise DataError(
            f"label {wrong} is out of range: expected 0 to {null_class - 1}, or {null_class} for the null class"
        )
    if prefix is not None and (prefix.shape[0] != count or prefix.shape[1] > model.config.num_tokens):
        raise DataError(
            f"prefix of shape {tuple(prefix.shape)} does not fit {count} images of {model.config.num_tokens} codes"
        )
    if (
        prefix is not None
        and prefix.numel()
        and not 0 <= int(prefix.min()) <= int(prefix.max()) < model.config.vocab_size
    ):
        raise DataError(f"prefix holds codes outside 0 to {model.config.vocab_size - 1}")
