"""Draw the masked tokens of images again, so that they fit what comes before and after them.

A generator sees only what comes before a token. What follows a hole is accounted for by several candidates for each
image, which are decoded side by side: each is as good as the tokens after its hole are likely.

``resample``  sequential Monte Carlo: masked tokens are sampled, and a token that is known multiplies a candidate's
              weight by its probability. When few candidates hold most of the weight, bad ones are replaced by copies of
              good ones (systematic resampling), which then go on differently. One is chosen by its weight at the end.
              With many candidates this samples from the model's distribution of the masked tokens given all others.
``best``      candidates are independent, and the one with the largest weight is taken.
``plain``     one candidate: from left to right, blind for what follows.

Shape letters: B images, L tokens of an image, N candidates for an image.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.errors import ConfigError, DataError, suggest
from aimamba.generation.engines import Engine, make_engine
from aimamba.generation.loop import check_logits, each_config
from aimamba.generation.plan import Labels, SamplingPlan, check_codes, check_labels, uniform_numbers
from aimamba.generation.sampling import SamplingConfig
from aimamba.inference import Inference
from aimamba.models import AiM

METHODS = ("resample", "best", "plain")

_MOST_CANDIDATES = 10_000
_FEW = 0.5  # share of the candidates: with a smaller effective number of them, they are resampled


@Inference()
def inpaint(  # noqa: PLR0915 - one loop, like that of `generate`
    model: AiM,
    labels: Labels,
    config: SamplingConfig | Sequence[SamplingConfig],
    *,
    codes: Int[Tensor, "b l"],
    mask: Tensor,
    seeds: Sequence[int] | None = None,
    negatives: Float[Tensor, "b p1 d"] | None = None,
    method: str = "resample",
    candidates: int = 16,
    engine: Engine | str = "auto",
) -> Iterator[Tensor]:
    """Draw masked tokens again; the others stay as they are.

    An image depends only on the weights and its own label, settings, seed, codes and mask. Candidates are weighted by
    the distributions that guidance and temperature make; top-k, top-p and min-p limit only what is sampled.

    Args:
        model: The generator, in evaluation mode.
        labels: A class, a mixture or an opening for each image, see ``generate``.
        config: Settings for all images, or one for each.
        codes: All tokens of each image; masked ones may be anything.
        mask: Which tokens to draw again, booleans (B, L).
        seeds: A seed for each image, see ``generate``.
        negatives: Openings of the unconditional rows, see ``generate``.
        method: See the head of this module.
        candidates: Candidates for each image (N); ``plain`` has one.
        engine: See ``generate``.

    Yields:
        The tokens of one candidate for each image, (B, t) for t = 1 ... L; the last time those of the chosen one.

    Raises:
        DataError: A label, the codes or the mask do not fit.
        ConfigError: A setting is unknown or out of range, see ``generate``.
        CheckpointError: After the last token, if the logits contain NaN or infinity, as with damaged weights.
    """
    count, length = len(labels), model.config.num_tokens
    check_labels(model, labels)
    configs, seeds = each_config(config, seeds, count)
    number = 1 if method == "plain" else candidates
    _check(model, method, number, count, mask)
    single = SamplingPlan(model, labels, configs, negatives)
    device = single.device
    known = check_codes(model, codes.where(~mask, 0).to(device), count, "codes")
    starts = mask.any(dim=0).nonzero().flatten().tolist()
    first, last = starts[0], starts[-1]
    mask = mask.to(device)
    uniforms = uniform_numbers(model, seeds, number + 1)
    numbers, choices = uniforms[:number].permute(1, 2, 0).flatten(1), uniforms[number]  # (L, B N) and (L, B)

    stepper = make_engine(model, engine) if isinstance(engine, str) else engine
    state = stepper.init_state(single.rows)
    inputs = logits = torch.empty(0)
    for t in range(first):  # what all candidates have in common
        state = single.leave(state, t) if t else state
        logits = stepper.step(single.inputs(inputs, state.rows), state) if t else single.open(stepper, state)
        inputs = known[:, t]
        yield known[:, : t + 1]

    many = SamplingPlan(
        model,
        labels.repeat_interleave(number, dim=0),
        [each for each in configs for _ in range(number)],
        None if negatives is None else negatives.repeat_interleave(number, dim=0),
    )
    with torch.inference_mode(mode=False):
        found = known.repeat_interleave(number, dim=0).clone()  # (B N, L)
    known, mask = (tensor.repeat_interleave(number, dim=0) for tensor in (known, mask))
    weights = torch.zeros(count, number, dtype=torch.float64, device=device)
    if first:
        state = single.leave(state, first)
        state = state.select(torch.arange(state.rows, device=device).repeat_interleave(number)) if number > 1 else state
        inputs = many.inputs(found[:, first - 1], state.rows)
    else:
        state = stepper.init_state(many.rows)
    for t in range(first, length):
        if number == 1 and t > last:
            break  # all that follows is known, and nothing depends on how likely it is
        logits = stepper.step(inputs, state) if t else many.open(stepper, state)
        if t <= last:
            sampled = many.sample(stepper, t, logits, numbers[t])
            found[:, t] = torch.where(mask[:, t], sampled, known[:, t])
        if number > 1:
            likely = many.log_probabilities(t, logits).gather(-1, known[:, t, None]).squeeze(-1)
            weights += likely.masked_fill(mask[:, t], 0).to(weights.dtype).view(count, number)
        if method == "resample" and t < length - 1 and (images := _resampled(weights, choices[t])) is not None:
            found[:, : t + 1] = found[images, : t + 1]
            state = state.select(many.rows_of(images, state.rows))
        if t < length - 1:
            state = many.leave(state, t + 1)
            inputs = many.inputs(found[:, t], state.rows)
            yield found.view(count, number, length)[:, 0, : t + 1]
    for t in range(last + 1, length - 1) if number == 1 else ():
        yield found[:, : t + 1]
    del state  # as in `generate`: the next batch may use its memory
    yield _chosen(found.view(count, number, length), weights, choices[-1], method)
    check_logits(logits)


def _resampled(weights: Float[Tensor, "b n"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " bn"] | None:
    """Return for each candidate of all images the one that it goes on from, or None if no image is resampled.

    The weights, as logarithms, of those that are become equal.
    """
    count, number = weights.shape
    shares = weights.softmax(dim=-1)
    few = 1 / shares.square().sum(dim=-1) < _FEW * number
    if not bool(few.any()):
        return None
    order = torch.arange(number, dtype=shares.dtype, device=weights.device)
    places = (order + uniform.to(shares.dtype)[:, None]) / number  # (B, N)
    chosen = torch.searchsorted(shares.cumsum(dim=-1), places).clamp(max=number - 1)
    chosen = torch.where(few[:, None], chosen, order.long())
    weights.masked_fill_(few[:, None], 0)
    return (chosen + number * torch.arange(count, device=weights.device)[:, None]).flatten()


def _chosen(
    found: Int[Tensor, "b n l"], weights: Float[Tensor, "b n"], uniform: Float[Tensor, " b"], method: str
) -> Int[Tensor, "b l"]:
    """Return one candidate of each image: the best, or one at random by its weight."""
    if method == "resample":
        cumulative = weights.softmax(dim=-1).cumsum(dim=-1)
        chosen = torch.searchsorted(cumulative, uniform.to(cumulative.dtype)[:, None]).clamp(max=weights.shape[1] - 1)
    else:
        chosen = weights.argmax(dim=-1, keepdim=True)
    with torch.inference_mode(mode=False):
        return found.gather(1, chosen[..., None].expand(-1, -1, found.shape[2])).squeeze(1).clone()


def _check(model: AiM, method: str, candidates: int, count: int, mask: Tensor) -> None:
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {method!r}{suggest(method, METHODS)}")
    if not 1 <= candidates <= _MOST_CANDIDATES:
        raise ConfigError(f"candidates must be from 1 to {_MOST_CANDIDATES:,}, got {candidates}")
    shape = (count, model.config.num_tokens)
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise DataError(f"expected a mask of booleans {shape}, got {tuple(mask.shape)} of {mask.dtype}")
    if not bool(mask.any(dim=1).all()):
        raise DataError("a mask covers no token, so there is nothing to draw")
