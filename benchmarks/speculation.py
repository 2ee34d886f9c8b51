"""Speculative sampling in PyTorch: draft some codes, feed them at once, keep those that plain sampling would choose.

Uniform numbers are shared with ``generate``: a code is always the one that its uniform number gives under the model's
own distribution, and a draft only says what to feed before that code is known. So images are those of ``generate``,
whatever the drafts (up to the rounding of matrix products). ``accepts`` is the usual rule, which keeps the distribution
but not the images (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

Shape letters: R rows, K tokens fed at once, B images, L tokens of an image, V vocabulary.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aimamba.generation.plan import SamplingPlan, uniform_numbers
from aimamba.generation.sampling import SamplingConfig
from aimamba.models import AiM, AiMState
from aimamba.models.mamba2 import Mamba2
from aimamba.ops.conv.causal import causal_conv_step
from aimamba.ops.linear.linear import linear
from aimamba.ops.norm.rms import modulated_rms_norm_step
from aimamba.ops.ssd.reference import ssd_step, ssd_step_dual

Draft = Callable[[int, Sequence[int]], int]
"""Guesses the next code of an image from its label and its codes so far."""

Trail = list[list[dict[str, Tensor]]]
"""What rollback needs: for every block, after every token fed, the tensors that it changes."""


def feed(model: AiM, codes: Tensor, state: AiMState) -> tuple[Tensor, Trail]:
    """Feed several codes of each row at once; each weight matrix is read once.

    Args:
        model: A generator with the mixer ``mamba2``.
        codes: Latest code of each row and the drafts after it, (R, K). Openings are fed by ``AiM.step``.
        state: Rows past their openings, with room for K codes. Undefined until ``keep`` is called.

    Returns:
        Logits after each code (R, K, V), equal to those of K steps; and what ``keep`` needs.
    """
    rows, count = codes.shape
    place = state.position[:, None] - 1 - model.config.prefix_tokens + state.position_shift[:, None]
    hidden = model.embed(codes, place + torch.arange(count))
    residual = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).flatten(0, 1)  # (R K, D)
    trail: Trail = []
    for index, (block, memory) in enumerate(zip(model.blocks, state.mixers, strict=True)):
        modulation = state.modulation[:, index].to(residual.dtype).repeat_interleave(count, dim=0)
        shift, scale, gate = modulation.unbind(1)
        mixer = block.mixer
        assert isinstance(mixer, Mamba2)
        x = modulated_rms_norm_step(residual, block.norm.weight, scale, shift).to(mixer.in_proj.weight.dtype)
        mixed, steps = _mix(mixer, x.unflatten(0, (rows, count)), memory, state.position)
        trail.append(steps)
        residual = torch.addcmul(residual, gate, mixed.flatten(0, 1))
    final = state.final_modulation.repeat_interleave(count, dim=0)
    return model._logits(residual, final).unflatten(0, (rows, count)), trail


def _mix(
    mixer: Mamba2, x: Tensor, memory: dict[str, Tensor], position: Tensor
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Do what ``Mamba2.step`` does, with one product for all tokens: only the recurrence goes token by token."""
    projected = linear(x, mixer.in_proj.weight)
    z, xBC, dt = mixer._split(projected.to(torch.promote_types(projected.dtype, torch.float32)))
    A = -mixer.A_log.to(dt.dtype).exp()
    now = dict(memory) | ({"weights": memory["weights"].clone()} if "weights" in memory else {})
    ys, inputs, steps = [], [], []
    for t in range(x.shape[1]):
        convolved, now["window"] = causal_conv_step(xBC[:, t], mixer.conv_weight, mixer.conv_bias, now["window"])
        u, B, C = F.silu(convolved).split([mixer.inner, mixer.state_size, mixer.state_size], dim=-1)
        u = u.view(len(x), mixer.heads, -1)
        if "ssm" in now:
            y, now["ssm"] = ssd_step(u, dt[:, t], A, B, C, now["ssm"])
            steps.append({name: now[name] for name in ("window", "ssm")})
        else:
            y = ssd_step_dual(u, dt[:, t], A, B, C, (now["inputs"], now["projections"], now["weights"]), position + t)
            steps.append({"window": now["window"], "weights": now["weights"].clone()})
        ys.append(y)
        inputs.append(u)
    return mixer._combine(torch.stack(ys, dim=1), torch.stack(inputs, dim=1), z), steps


def keep(state: AiMState, trail: Trail, kept: Tensor) -> None:
    """Keep the first codes of each row that ``feed`` was given, as if no others had been fed.

    Args:
        state: What ``feed`` was given; updated.
        trail: What ``feed`` returned.
        kept: Number of codes of each row (R,), from 1 to K.
    """
    rows = torch.arange(state.rows)
    for memory, steps in zip(state.mixers, trail, strict=True):
        for name in steps[0]:
            memory[name] = torch.stack([step[name] for step in steps])[kept - 1, rows]
        if "weights" in memory:  # slots of codes that are not kept
            unused = torch.arange(memory["weights"].shape[2]) >= (state.position + kept)[:, None]
            memory["inputs"].masked_fill_(unused[:, None, :, None], 0)
            memory["projections"].masked_fill_(unused[:, :, None], 0)
    state.position = state.position + kept


class Speculated(NamedTuple):
    """Images and how they were made.

    Attributes:
        codes: (B, L).
        steps: Steps that each image took after its opening; L - 1 without drafts.
    """

    codes: Tensor
    steps: list[int]


@torch.no_grad()
def speculate(
    model: AiM,
    labels: Tensor,
    config: SamplingConfig,
    draft: Draft,
    *,
    seeds: Sequence[int],
    width: int = 4,
) -> Speculated:
    """Generate the images of ``generate``, up to ``width`` codes of an image a step.

    Args:
        model: A generator with the mixer ``mamba2``.
        labels: (B,).
        config: Settings; guidance, filters and schedules as in ``generate``.
        draft: Guesses codes. Both rows of a guided image are fed the same ones.
        seeds: A seed for each image.
        width: Codes fed at once, the latest one and ``width - 1`` drafts.
    """
    length, images = model.config.num_tokens, range(len(labels))
    [uniforms] = uniform_numbers(model, seeds)  # (L, B)
    plan = SamplingPlan(model, labels, [config] * len(labels))
    alone = [SamplingPlan(model, labels[b : b + 1], [config]) for b in images]  # images are at different tokens
    unconditional = {int(b): len(labels) + i for i, b in enumerate(plan.guided)}
    codes: list[list[int]] = [[] for _ in images]
    steps = [0] * len(labels)

    def choose(b: int, logits: Tensor) -> int:
        t = len(codes[b])
        chosen = alone[b].sample(model, t, logits if t < plan.last_guided else logits[:1], uniforms[t, b : b + 1])
        codes[b].append(int(chosen))
        return codes[b][-1]

    state = model.init_state(plan.rows)
    logits = plan.open(model, state)
    owners = [*images, *unconditional]  # the image of each row
    for b in images:
        choose(b, logits[[row for row, owner in enumerate(owners) if owner == b]])
    while left := [b for b in set(owners) if len(codes[b]) < length]:
        if len(left) < len(set(owners)):
            rows = [row for row, owner in enumerate(owners) if owner in left]
            state, owners = state.select(torch.tensor(rows)), [owners[row] for row in rows]
        count = min([width, *(length - len(codes[b]) for b in left)])
        drafts: dict[int, list[int]] = {b: codes[b][-1:] for b in left}
        for b in left:
            for _ in range(count - 1):
                drafts[b].append(draft(int(labels[b]), codes[b][:-1] + drafts[b]))
        logits, trail = feed(model, torch.tensor([drafts[b] for b in owners]), state)
        kept = {}
        for b in left:
            rows = [row for row, owner in enumerate(owners) if owner == b]
            steps[b] += 1
            kept[b] = 1
            while choose(b, logits[rows, kept[b] - 1]) == (drafts[b] + [-1])[kept[b]] and kept[b] < count:
                kept[b] += 1
        keep(state, trail, torch.tensor([kept[b] for b in owners]))
    return Speculated(torch.tensor(codes), steps)


def accepts(p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Apply the usual rule: accept a code drafted from q with min(1, p / q), else draw from max(0, p - q).

    Args:
        p: The model's distributions (B, V).
        q: The draft's (B, V).
        drafted: Codes sampled from q, (B,).
        generator: For the numbers that decide.

    Returns:
        Codes that are distributed as p, (B,), and whether each is the drafted one.
    """
    rows = torch.arange(len(p))
    accepted = torch.rand(len(p), dtype=p.dtype, generator=generator) * q[rows, drafted] < p[rows, drafted]
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, p)
    return torch.where(accepted, drafted, rest.multinomial(1, generator=generator).squeeze(-1)), accepted


class Tables:
    """Counts of codes by label, place, and neighbours to the left and above, mixed from coarse to fine."""

    def __init__(self, codes: Iterable[Sequence[int]], labels: Iterable[int], *, columns: int, vocabulary: int) -> None:
        """Count.

        Args:
            codes: Codes of images in raster order.
            labels: Their labels.
            columns: Width of the grid.
            vocabulary: Number of codes (V).
        """
        self.columns, self.vocabulary = columns, vocabulary
        all_counts: list[defaultdict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(5)]
        for label, image in zip(labels, codes, strict=True):
            for t, code in enumerate(image):
                for counts, context in zip(all_counts, self._contexts(label, image, t), strict=True):
                    counts[context][code] += 1
        self._seen = [{context: _Seen.of(codes) for context, codes in each.items()} for each in all_counts]

    def _contexts(self, label: int, codes: Sequence[int], t: int) -> list[tuple[int, ...]]:
        """Return the contexts of code ``t``, coarse to fine; -1 stands for a neighbour outside of the grid."""
        width = self.columns

        def at(back: int) -> int:
            return codes[t - back] if back <= t else -1

        left = at(1) if t % width else -1
        return [
            (label,),
            (label, t),
            (label, at(width)),
            (label, left, at(width)),
            (label, left, at(width), at(width - 1) if width > 1 else -1, at(2)),
        ]

    def distribution(self, label: int, codes: Sequence[int]) -> Tensor:
        """Return the draft's distribution of the code after ``codes`` (V), float64 and positive everywhere."""
        found = torch.full((self.vocabulary,), 1 / self.vocabulary, dtype=torch.float64)
        for counts in self._found(label, codes):
            found *= counts.spread / (counts.total + counts.spread)
            seen = list(counts.codes.values())
            found[list(counts.codes)] += torch.tensor(seen, dtype=torch.float64) / (counts.total + counts.spread)
        return found

    def guess(self, label: int, codes: Sequence[int]) -> int:
        """Return the most likely code after ``codes``, of those that are frequent in the two finest contexts."""
        found = self._found(label, codes)
        chances = dict.fromkeys([code for counts in found[-2:] for code in counts.frequent], 0.0)
        for counts in found:
            for code, chance in chances.items():
                seen = counts.codes.get(code, 0)
                chances[code] = (chance * counts.spread + seen) / (counts.total + counts.spread)
        return max(chances, key=chances.__getitem__) if chances else 0

    def _found(self, label: int, codes: Sequence[int]) -> list["_Seen"]:
        contexts = self._contexts(label, codes, len(codes))
        return [seen[context] for seen, context in zip(self._seen, contexts, strict=True) if context in seen]


class _Seen(NamedTuple):
    """The codes that followed a context; ``spread`` weighs the coarser context."""

    codes: Counter[int]
    total: int
    spread: float
    frequent: list[int]

    @staticmethod
    def of(codes: Counter[int]) -> "_Seen":
        return _Seen(codes, sum(codes.values()), 0.5 * len(codes) + 0.5, [code for code, _ in codes.most_common(8)])
