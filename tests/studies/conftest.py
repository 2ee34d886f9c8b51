"""Made-up results of the packaged studies."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROVENANCE = {"cpu": "Some CPU", "cores": 2, "threads": 1, "torch": "2.13.0", "commit": "c0ffee"}
SHAPE = {"vocab_size": 2048, "num_tokens": 64, "num_classes": 10}


def sample_numbers(scale: float, schedule: str, frechet: float) -> dict[str, Any]:
    return {
        "sampling": {"cfg_scale": scale, "cfg_schedule": schedule},
        "numbers": {
            "network": "lite0",
            "frechet": frechet,
            "kid": frechet / 1e5,
            "precision": 0.5 + 0.05 * scale,
            "recall": 0.6 - 0.05 * scale,
            "recognition": {"share": 0.9},
        },
        "seconds": 60.0,
    }


def priced_numbers(sampling: Any, frechet: float) -> dict[str, Any]:
    """Numbers of the study ``guidance-free``: against reconstructions too."""
    found = sample_numbers(sampling.cfg_scale, sampling.cfg_schedule, frechet)
    found["sampling"] |= {"cfg_start": sampling.cfg_start, "cfg_end": sampling.cfg_end}
    found["numbers"]["reconstructions"] = {**found["numbers"], "frechet": frechet / 2, "precision": 0.75}
    return found


def timed(sampling: Any) -> dict[str, Any]:
    names = ("cfg_scale", "cfg_schedule", "cfg_start", "cfg_end")
    rows = 1 + sampling.cfg_end * (sampling.cfg_scale != 1)
    settings = {name: getattr(sampling, name) for name in names}
    return {"sampling": settings, "rows": rows, "pictures_per_second": 20 / rows}


SETS = {"captioned-avatars-64:held-out": 1717, "captioned-avatars-64:held-out-pairs": 283}


def read(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "binding": accuracy / 2, "by_attribute": {"colour": accuracy}, "images": 400}


def caption_numbers(scale: float, bits: float) -> dict[str, Any]:
    sets = {name: {"cfg_scale": scale, "attributes": read(scale / 4), "frechet": 100 * bits} for name in SETS}
    return {**sample_numbers(scale, "constant", 0), "numbers": {"network": "lite0", "sets": sets}}


def measured_sets(bits: float) -> dict[str, Any]:
    per_token = {"right": bits - 0.5, "wrong": bits + 0.5, "none": bits, "images": 283}
    bounds = {"ceiling": read(0.98), "reconstructed": read(0.9), "floor": read(0.2)}
    return {
        name: {"images": count, "bits_per_token": per_token, "attributes_of_real_images": bounds}
        for name, count in SETS.items()
    }


def tokenizer_numbers(bits: float) -> dict[str, Any]:
    errors = {"psnr": 20 + bits, "ssim": 0.9, "ssim_llamagen": 0.9, "lpips": 0.1, "frechet": 10 * bits}
    use = {"codes_used": 0.75, "perplexity": 300.0}
    return {"parameters": 700000, "decoder": 400000, "codes": 512, **errors, **use, "network": "lite0"}


@pytest.fixture
def finished(tmp_path) -> Callable[..., Any]:
    """Results of a packaged study: bits and distances fall with the logarithm of the parameters, and vary by seed."""
    from aimamba.config import from_mapping, to_mapping
    from aimamba.generation import SamplingConfig
    from aimamba.models import AiMConfig
    from aimamba.studies.recipe import load_study
    from aimamba.studies.results import Results
    from aimamba.studies.runner import count_parameters
    from aimamba.studies.speed import state_bytes

    def make(kind: str, folder: Path = tmp_path) -> Results:
        study = load_study(kind)
        settings = {"budget": study.budget, "model": "avatars-64", "weights": ["00"], "recipe": to_mapping(study)}
        results = Results.begin(folder / "results.json", kind, settings)
        place = {**PROVENANCE, "date": "2026-11-25T10:00"}
        for sampling in study.judging.samplings() if "guidance" in kind else ():
            scale, schedule = sampling.cfg_scale, sampling.cfg_schedule
            frechet = 100 + 50 * (scale - 2) ** 2 + len(schedule)
            numbers = sample_numbers(scale, schedule, frechet)
            numbers = priced_numbers(sampling, frechet) if kind == "guidance-free" else numbers
            results.add(f"{schedule}-{scale:g}-{sampling.cfg_end:g}", {"samples": [numbers], "provenance": place})
        if kind == "guidance-free":
            lines = [timed(sampling) for sampling in study.judging.samplings()]
            results.add("speed", {"speed": lines, "provenance": place})
        for variant in study.variants if kind == "guidance-free" else ():
            run = {"variant": variant.name, "seed": 0, "train_seconds": 300.0, "held_out": {"bits_per_token": 2.5}}
            samples = [priced_numbers(SamplingConfig(), 80.0)]
            results.add(f"{variant.name}-seed-0", {**run, "samples": samples, "provenance": place})
        for variant in study.variants if kind != "guidance-free" else ():
            config = from_mapping(AiMConfig, {**study.model, **variant.model, **SHAPE}, where="test")
            shape = count_parameters(config)
            for seed in variant.seeds or study.seeds:
                bits = 9 - math.log10(shape["parameters"]) + 0.01 * seed + 0.001 * len(variant.name)
                run = {
                    "variant": variant.name,
                    "seed": seed,
                    "lr": variant.lr or study.fit["lr"],
                    **shape,
                    "held_out": {"bits_per_token": bits},
                    "train_seconds": 300.0,
                    "train_pictures_per_second": 50.0,
                    "samples": [
                        sample_numbers(s.cfg_scale, s.cfg_schedule, 100 * bits) for s in study.judging.samplings()
                    ],
                    "provenance": {**PROVENANCE, "date": "2026-11-26T10:00"},
                }
                if kind == "tokenizer":
                    run["tokenizer"], run["tokens"], run["seconds"] = tokenizer_numbers(bits), 64, 90.0
                if kind == "text":
                    run["sets"], run["seconds"] = measured_sets(bits), 30.0
                    run["samples"] = [caption_numbers(s.cfg_scale, bits) for s in study.judging.samplings()]
                results.add(f"{variant.name}-seed-{seed}", run)
            if study.kind == "baseline":
                lines = [
                    {"tokens": tokens, "batch": batch, "pictures_per_second": 1000 / tokens}
                    | {"state_bytes": state_bytes(from_mapping(AiMConfig, {**study.model, **variant.model, **SHAPE,
                       "num_tokens": tokens}, where="test"))}
                    for tokens in study.speed.tokens
                    for batch in study.speed.batches
                ]  # fmt: skip
                results.add(f"speed-{variant.name}", {"variant": variant.name, "speed": lines, "provenance": place})
        return results

    return make
