"""The decoding loop: one code after another, as a Python generator that can be watched, stopped or previewed.

Shape letters: B images, L codes of an image, R rows of the state (images, then their unguided twins).
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
    """Draw the codes of images, all in step.

    An image depends on the weights, its label, its settings and its seed alone: each row draws from its own
    generator, and no row sees another.

    Args:
        model: The generator, in evaluation mode.
        labels: A class for each image; ``num_classes`` asks for none.
        config: Settings for all images, or one for each.
        seeds: A seed for each image; counted up from the config's seed when absent.
        prefix: Codes already known, which the images begin with.
        position_shift: Overrides the model's ``decode_position_shift``.
        engine: Computes the steps: a name of ``aimamba.generation.engines``, or an engine made from this model before,
            which saves packing the weights anew.

    Yields:
        The codes so far, (B, t) for t = 1 ... L: a view of one growing tensor, so copy what must not change.

    Raises:
        DataError: A label is out of range or the prefix does not fit.
        ConfigError: The numbers of labels, configs and seeds differ, or the engine is unknown or cannot decode this
            model.
        CheckpointError: After the last code: its logits are no finite numbers, as damaged weights leave them.
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
    # All that the loop needs is on the device before it begins, so that no step waits for it.
    scales = torch.tensor([[each.guidance_at(t, length) for each in configs] for t in range(length)])
    guided = (scales != 1).any(dim=0).nonzero().squeeze(-1)  # images that need an unguided twin
    others = torch.arange(count).index_copy(0, guided, count + torch.arange(len(guided)))
    unconditional_rows = others.to(device) if len(guided) else None
    guided, scales = guided.to(device), scales.to(device)
    uniforms = torch.stack([_uniform_numbers(seed, length) for seed in seeds], dim=1)  # (L, B)
    uniforms = uniforms.to(uniform_dtype(device)).to(device)
    prefix = None if prefix is None else prefix.to(device)

    stepper = make_engine(model, engine) if isinstance(engine, str) else engine
    draw = stepper.guided_sample if isinstance(stepper, SamplingEngine) else guided_sample
    state = stepper.init_state(count + len(guided), position_shift=position_shift)
    null_class = labels.new_full((len(guided),), model.condition.null_class)
    inputs = torch.cat([labels, null_class])  # (R,)
    with torch.inference_mode(mode=False):  # for a caller to train on
        codes = torch.empty(count, length, dtype=labels.dtype, device=device)
    known = 0 if prefix is None else prefix.shape[1]
    for t in range(length):
        logits = stepper.step(inputs, state)
        if prefix is not None and t < known:
            codes[:, t] = prefix[:, t]
        else:
            codes[:, t] = draw(logits, uniforms[t], unconditional_rows=unconditional_rows, scale=scales[t], **settings)
        inputs = torch.cat([codes[:, t], codes[guided, t]])
        yield codes[:, : t + 1]
    if not bool(logits.isfinite().all()):  # asked once, at the end: what a row remembers stays not finite
        raise CheckpointError(
            "the generator's logits are no finite numbers: its weights are damaged, or its dtype is too narrow for them"
        )


def _uniform_numbers(seed: int, length: int) -> Tensor:
    """The uniform numbers of one image, in [0, 1): the same on every device and in every batch."""
    return torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _validate(
    model: AiM, labels: Tensor, configs: list[SamplingConfig], seeds: list[int], prefix: Tensor | None
) -> None:
    count, null_class = labels.shape[0], model.condition.null_class
    if count == 0:
        raise DataError("no labels given; expected at least one image to draw")
    if not len(configs) == len(seeds) == count:
        raise ConfigError(f"{count} labels, {len(configs)} configs and {len(seeds)} seeds: expected as many of each")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > null_class:
        wrong = lowest if lowest < 0 else highest
        raise DataError(f"label {wrong} is out of range: expected 0 to {null_class - 1}, or {null_class} for no class")
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
