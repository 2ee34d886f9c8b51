"""Whether speculative sampling would pay: ``python -m benchmarks.speculative --help``.

Three things decide, and each is measured alone: what a step of the native engine costs with K rows in place of one
(an image without guidance) or 2 K in place of two (with it), which bounds what K tokens of a row would cost; how many
tokens a step gains with drafts from tables of neighbours (``benchmarks.speculation``), on new images of the model; and
how long a draft takes. CPU time of the process is compared in turns, so that other programs disturb little.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aimamba.data.shards import open_codes
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines.native import NativeEngine
from aimamba.generation.plan import SamplingPlan
from aimamba.models import AIM_PRESETS, AiM
from aimamba.pipeline import Pipeline
from benchmarks.speculation import Tables

WIDTHS = (2, 3, 4, 6, 8)


def costs(model: AiM, weights: str, *, repeats: int, threads: int) -> dict[int, float]:
    """Return median CPU seconds of a step in the middle of an image, by the number of rows."""
    engine = NativeEngine(model, weights=weights, threads=threads)  # type: ignore[arg-type]
    states = {}
    for rows in sorted({1, 2, *WIDTHS, *(2 * width for width in WIDTHS)}):
        states[rows] = engine.init_state(rows)
        engine.step(torch.zeros(rows, dtype=torch.long), states[rows])
        states[rows].position.fill_(model.config.num_tokens // 2)
        for memory in states[rows].mixers:
            for tensor in memory.values():
                tensor.normal_(std=0.01)
    taken: dict[int, list[float]] = {rows: [] for rows in states}
    for _ in range(repeats):
        for rows, state in states.items():
            position = state.position
            start = time.process_time()
            engine.step(torch.zeros(rows, dtype=torch.long), state)
            taken[rows].append(time.process_time() - start)
            state.position = position
    return {rows: statistics.median(times) for rows, times in taken.items()}


def generated(
    pipeline: Pipeline, config: SamplingConfig, labels: Tensor, per_class: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return codes (B, L) and labels (B,) of new images of some classes."""
    model, engine = pipeline.generator, pipeline.prepare()
    labels = labels.repeat_interleave(per_class)
    parts = []
    for i, part in zip(range(0, len(labels), 64), labels.split(64), strict=True):
        *_, codes = generate(model, part, config, seeds=range(seed + i, seed + i + len(part)), engine=engine)
        parts.append(codes.clone())
    return torch.cat(parts), labels


def distributions(pipeline: Pipeline, codes: Tensor, labels: Tensor, config: SamplingConfig) -> Tensor:
    """Return the model's guided distribution of each code (B, L, V); top-k, top-p and min-p do not count."""
    model, engine = pipeline.generator, pipeline.prepare()
    plan = SamplingPlan(model, labels, [config] * len(labels))
    state = engine.init_state(plan.rows)
    logits, found = plan.open(engine, state), []
    for t in range(codes.shape[1]):
        found.append(plan.log_probabilities(t, logits).exp())
        if t + 1 < codes.shape[1]:
            state = plan.leave(state, t + 1)
            logits = engine.step(plan.inputs(codes[:, t], state.rows), state)
    return torch.stack(found, dim=1)


def tokens_per_step(accepted: Tensor, width: int) -> float:
    """Return how many codes a step yields, given whether the draft of each code would be right (B, L)."""
    steps, length = 0, accepted.shape[1]
    for image in accepted.tolist():
        t = 1  # the opening's step chooses the first one
        while t < length:
            right = 0
            while right < width - 1 and t + right + 1 < length and image[t + right]:
                right += 1
            t, steps = t + right + 1, steps + 1
    return len(accepted) * (length - 1) / steps


def gain(values: dict[str, float], cost: dict[int, float], *, rows: int, draft: float) -> dict[int, float]:
    """Return how much less CPU time a code takes, by the number of codes fed at once."""
    return {width: values[str(width)] * cost[rows] / (cost[rows * width] + (width - 1) * draft) for width in WIDTHS}


def counted(pipeline: Pipeline, folder: Path | None, per_class: int) -> tuple[Tensor, Tensor]:
    """Return codes and labels to count tables on: of a folder, or of new images of the model."""
    if folder is None:
        classes = torch.arange(pipeline.generator.config.num_classes)
        return generated(pipeline, SamplingConfig(), classes, per_class, seed=1_000_000)
    meta, images = open_codes(folder, pipeline.tokenizer)
    known = torch.tensor([pipeline.label(name) for name in meta.class_names])
    return images.take(range(len(images)), [0] * len(images)), known[torch.as_tensor(images.labels)]


@torch.no_grad()
def acceptance(
    pipeline: Pipeline, tables: Tables, config: SamplingConfig, classes: Tensor, per_class: int
) -> dict[str, Any]:
    """Return the share of accepted drafts, and codes a step, by rule."""
    codes, labels = generated(pipeline, config, classes, per_class, seed=0)
    p = distributions(pipeline, codes, labels, config).double()
    images = list(zip(labels.tolist(), codes.tolist(), strict=True))
    places = range(codes.shape[1])
    start = time.process_time()
    guesses = torch.tensor([[tables.guess(label, image[:t]) for t in places] for label, image in images])
    drafting = (time.process_time() - start) / guesses.numel()
    q = torch.stack([torch.stack([tables.distribution(label, image[:t]) for t in places]) for label, image in images])
    chances = torch.minimum(p, q).sum(dim=-1)
    usual = torch.rand(chances.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) < chances
    rules = {"same images": guesses == codes, "usual rule": usual, "best guess": p.argmax(dim=-1) == codes}
    return {
        "bits": float(-(p * p.clamp(min=1e-300).log2()).sum(dim=-1).mean()),
        "draft_seconds": drafting,
        "rules": {
            name: {"accepted": float(found[:, 1:].double().mean())}
            | {str(width): tokens_per_step(found, width) for width in WIDTHS}
            for name, found in rules.items()
        },
    }


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="avatars-64")
    parser.add_argument("--codes", type=Path, help="count the tables on codes from `aimamba encode MODEL IMAGES`")
    parser.add_argument("--count", type=int, default=400, help="without: on this many images of the model per class")
    parser.add_argument("--per-class", type=int, default=10, help="images to measure acceptance on (default 10)")
    parser.add_argument("--size", choices=AIM_PRESETS, help="also what rows cost in a generator of this size")
    parser.add_argument("--weights", nargs="+", default=["float32", "int8"], help="float32, bfloat16, int8")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[1.0, 0.8])
    parser.add_argument("--cfg-scales", nargs="+", type=float, default=[1.0, 1.5])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = Pipeline.from_pretrained(options.model)
    subjects = {options.model: pipeline.generator}
    if options.size is not None:
        subjects[options.size] = AiM(AIM_PRESETS[options.size]).eval()
    step_costs = {
        f"{name} {weights}": costs(subject, weights, repeats=options.repeats, threads=options.threads)
        for name, subject in subjects.items()
        for weights in options.weights
    }
    print("CPU milliseconds of a step, by rows")
    for name, by_rows in step_costs.items():
        print(f"{name:<24}", *(f"{rows}: {1000 * cost:.2f} " for rows, cost in by_rows.items()), flush=True)
    codes, labels = counted(pipeline, options.codes, options.count)
    tables = Tables(
        codes.tolist(), labels.tolist(), columns=pipeline.grid, vocabulary=pipeline.generator.config.vocab_size
    )
    found = {}
    for temperature in options.temperatures:
        for scale in options.cfg_scales:
            config = SamplingConfig(temperature=temperature, cfg_scale=scale)
            name = f"temperature {temperature:g}, guidance {scale:g}"
            found[name] = row = acceptance(pipeline, tables, config, labels.unique(), options.per_class)
            print(f"\n{name}: {row['bits']:.2f} bits a code, {1e6 * row['draft_seconds']:.0f} us a draft", flush=True)
            for rule, values in row["rules"].items():
                print(f"  {rule:<12} {values['accepted']:.3f} accepted; codes a step, and how much cheaper a code is:")
                print(f"  {'codes':<24}", *(f"{width}: {values[str(width)]:.2f} " for width in WIDTHS))
                for of, cost in step_costs.items():
                    gains = gain(values, cost, rows=1 if scale == 1 else 2, draft=row["draft_seconds"])
                    print(f"  {of:<24}", *(f"{width}: {times:.2f} " for width, times in gains.items()), flush=True)
    if options.json is not None:
        result = {"images counted": len(codes), "step_seconds": step_costs, "acceptance": found}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
