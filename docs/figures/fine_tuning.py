"""Compare fine-tuning, LoRA and training from scratch on avatars that the packaged weights have never seen.

python docs/figures/fine_tuning.py runs/fine-tuning docs/figures

Trains what is not in the first folder yet, for 200, 1,000 and 5,000 steps (``--steps`` takes others), and goes on with
what was stopped; then plots ``fine-tuning-bits.png`` and ``fine-tuning-samples.png`` into the second one. All three see
the same 1,500 avatars of three styles, as codes of the packaged tokenizer, and are measured on 192 others with the
average of their weights.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from aimamba import Pipeline, SamplingConfig
from aimamba.cli.output import print_line
from aimamba.config import to_mapping
from aimamba.data import Avatars, sheet, to_pil
from aimamba.data.sheets import to_float
from aimamba.models import VQModel
from aimamba.train.fit import fit
from aimamba.train.recipe import load_recipe
from aimamba.train.stages import make_task, resolved

STYLES = ("moods", "cutouts", "shadows")
SHARED = {
    "data.source": f"avatars:{','.join(STYLES)}",
    "data.size": 64,
    "data.per_class": 500,
    "data.held_out_per_class": 64,
    "data.skip_per_class": 0,
    "task.tokenizer": "avatars-64",
    "fit.batch_size": 2,
    "fit.warmup_steps": 50,
    "fit.schedule": "constant",
    "fit.ema_decay": 0.995,
    "fit.evaluate_every": 500,
    "fit.checkpoint_every": 500,
    "fit.sheet_every": 0,
    "fit.precision": "float32",
    "fit.compile": False,
}
RUNS = {
    "scratch": ("avatars-64-aim", {"fit.lr": 1e-3}),
    "lora": ("aim-finetune", {"init": "avatars-64", "fit.lr": 2e-3, "task.lora_rank": 16}),
    "fine": ("aim-finetune", {"init": "avatars-64", "fit.lr": 5e-4}),
}
NAMES = {"scratch": "from scratch", "lora": "LoRA, rank 16", "fine": "fine-tuned"}
COLOURS = {"scratch": "#5f6b7a", "lora": "#d1495b", "fine": "#1f6f8b"}
INK = "#404040"
CPU = torch.device("cpu")


def train(runs: Path, name: str, steps: int) -> None:
    """Train one of the three up to a number of steps, and keep a copy of the model."""
    kept = runs / f"{name}-{steps}"
    if kept.exists():
        return
    recipe_name, changes = RUNS[name]
    recipe = load_recipe(recipe_name, {**SHARED, **changes, "fit.steps": steps})
    out = runs / name
    result = fit(
        lambda: make_task(recipe, device=CPU, codes=out / "codes"),
        recipe.fit,
        out,
        recipe=resolved(to_mapping(recipe)),
        resolve=resolved,
    )
    shutil.copytree(result.model, kept / "model")


def bits(runs: Path, name: str, steps: list[int]) -> tuple[dict[int, float], dict[int, float]]:
    """Return held-out bits per token by step: of every evaluation, and of the best models so far, which are kept."""
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {line["step"]: line["bits_per_token"] for line in lines if line["split"] == "held-out"}
    kept = {}
    for count in steps:
        about = json.loads((runs / f"{name}-{count}" / "model" / "result.json").read_text(encoding="utf-8"))
        kept[count] = about["metrics"]["bits_per_token"]
    return dict(sorted((kept | found).items())), kept


def plot(curves: dict[str, dict[int, float]], out: Path) -> None:
    """Plot held-out bits per token against steps."""
    plt.rcParams |= {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 9}
    figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name, curve in curves.items():
        panel.plot(curve.keys(), curve.values(), ".-", color=COLOURS[name], label=NAMES[name])
    panel.set_xlabel("step (two images each)")
    panel.set_ylabel("bits per token, held out")
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def samples(runs: Path, steps: list[int], out: Path) -> None:
    """Render samples of every model, class by class, below held-out originals and their reconstructions."""
    each = 4
    avatars = Avatars(64, "held-out", each, STYLES)
    originals = np.stack([avatars.image(index) for index in range(len(avatars))])
    tokenizer = VQModel.from_pretrained("avatars-64")
    with torch.no_grad():
        codes = tokenizer.encode(to_float(torch.from_numpy(originals).permute(0, 3, 1, 2)))
        decoded = tokenizer.decode(codes).clamp(-1, 1).add(1).mul(127.5).round().byte()
    rows = {"held out": to_pil(torch.from_numpy(originals).permute(0, 3, 1, 2)), "reconstructed": to_pil(decoded)}
    config = SamplingConfig(cfg_scale=1.5, temperature=0.9, seed=0)
    for count in steps:
        for name in RUNS:
            rows[f"{NAMES[name]}, {count:,}"] = Pipeline.from_pretrained(runs / f"{name}-{count}")(
                list(STYLES), each, config
            )
    sheet(list(rows.values()), row_names=list(rows)).save(out, optimize=True)


def main(arguments: list[str]) -> None:
    """Train, print the numbers, and make the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 1000, 5000])
    given = parser.parse_args(arguments)
    for count in given.steps:
        for name in RUNS:
            train(given.runs, name, count)
    found = {name: bits(given.runs, name, given.steps) for name in RUNS}
    for name, (_, kept) in found.items():
        print_line(f"{NAMES[name]}: " + ", ".join(f"{value:.2f} at {count:,}" for count, value in kept.items()))
    plot({name: curve for name, (curve, _) in found.items()}, given.out / "fine-tuning-bits.png")
    samples(given.runs, given.steps, given.out / "fine-tuning-samples.png")


if __name__ == "__main__":
    main(sys.argv[1:])
