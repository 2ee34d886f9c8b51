"""The memory of a training step, measured and planned: ``python -m benchmarks.memory [--device cuda]``.

Each case runs in a process of its own. On a CPU the peak is that of the process, less what it had after a tiny model
was trained, and malloc returns freed blocks at once (``MALLOC_MMAP_THRESHOLD_``), so that tensors alone count; with
``--as-in-training`` it keeps them, as in ``aimamba train``. On CUDA it is that of PyTorch's allocator.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aimamba.config import from_mapping
from aimamba.data.codes import CodeBatch
from aimamba.data.loader import Batch
from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiM, AiMConfig, VQConfig, VQModel
from aimamba.train.ema import ExponentialAverage
from aimamba.train.generator import code_cross_entropy
from aimamba.train.memory import keep_freed_memory
from aimamba.train.optim import Learner, adamw
from aimamba.train.plan.on_paper import Place
from aimamba.train.plan.outline import NoImages, outline
from aimamba.train.plan.plan import step_memory
from aimamba.train.recipe import Recipe
from aimamba.train.settings import FitConfig
from aimamba.train.stages import model_config
from aimamba.train.step import TrainingStep
from aimamba.train.tokenizer import TokenizerTask, TokenizerTaskConfig

_STEPS = 3
_LATE = 1 << 40  # all losses have started
_TINY_AIM = {"width": 64, "num_blocks": 2, "vocab_size": 64, "num_classes": 10, "state_size": 32, "num_tokens": 16}
_TINY_VQ = {"channels": 32, "channel_mult": [1, 2], "z_channels": 32, "codebook_size": 64}
_TOKENIZER = "none"  # of a generator: the shape is given


class Case(NamedTuple):
    """A training step.

    Attributes:
        model: Settings of the model.
        batch: Images.
        size: Side of the images of a tokenizer; 0 is a generator.
        task: Settings of the task.
    """

    model: dict[str, Any]
    batch: int
    size: int = 0
    task: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def recipe(self) -> Recipe:
        """Return a recipe with these settings and a moving average."""
        task = {"tokenizer": _TOKENIZER, **self.task} if self.size == 0 else self.task
        values = {
            "stage": "generator" if self.size == 0 else "tokenizer",
            "data": {"size": self.size or 256},
            "model": self.model,
            "task": task,
            "fit": {"steps": 1, "batch_size": self.batch, "lr": 1e-4, "ema_decay": 0.999},
        }
        return from_mapping(Recipe, values, where="case")


_SMALL = {"vocab_size": 4096, "num_tokens": 256, "num_classes": 10, "state_size": 64}
_GAN = {"adversarial_weight": 0.5, "discriminator_channels": 32}
_VQ = {"channels": 32, "channel_mult": [1, 2, 4], "z_channels": 64, "codebook_size": 1024}
CPU_CASES = {
    "generator 384 x 4, 8 images": Case({"width": 384, "num_blocks": 4, **_SMALL}, 8),
    "generator 384 x 4, 16 images": Case({"width": 384, "num_blocks": 4, **_SMALL}, 16),
    "generator 384 x 4, 16 images, computed again": Case(
        {"width": 384, "num_blocks": 4, **_SMALL}, 16, task={"checkpointing": True}
    ),
    "generator 256 x 8, group adaLN, 8 images": Case({"width": 256, "num_blocks": 8, "adaln": "group", **_SMALL}, 8),
    "generator 768 x 2, 4 images": Case({"width": 768, "num_blocks": 2, **_SMALL}, 4),
    "attention 256 x 8, 8 images": Case({"width": 256, "num_blocks": 8, "mixer": "attention", **_SMALL}, 8),
    "tokenizer, features, discriminator, 4 images of 64": Case(_VQ, 4, 64, {"perceptual_weight": 1.0, **_GAN}),
    "tokenizer, 4 images of 64": Case(_VQ, 4, 64),
    "tokenizer, 4 images of 128": Case(_VQ, 4, 128),
    "tokenizer, features, 4 images of 128": Case(_VQ, 4, 128, {"perceptual_weight": 1.0}),
    "tokenizer, features, discriminator, 4 images of 128": Case(_VQ, 4, 128, {"perceptual_weight": 1.0, **_GAN}),
}
CUDA_CASES = {
    **{name: Case({"preset": name}, 32) for name in ("aim-b", "aim-l", "aim-xl")},
    "aim-b, computed again": Case({"preset": "aim-b"}, 32, task={"checkpointing": True}),
    "vq-f16, 8 images": Case({"preset": "vq-f16"}, 8, 256),
    "vq-f16, features, discriminator, 8 images": Case(
        {"preset": "vq-f16"}, 8, 256, {"perceptual_weight": 1.0, "adversarial_weight": 0.5}
    ),
}


def measured(case: Case, device: torch.device) -> int:
    """Return the bytes at the peak of three steps. The process must be a fresh one."""
    if device.type == "cuda":
        _train(case, device)
        return torch.cuda.max_memory_allocated(device)
    tiny = Case(_TINY_AIM, 1) if case.size == 0 else Case(_TINY_VQ, 1, 64, case.task)
    _train(tiny, device)  # kernels are compiled, libraries have what they keep
    gc.collect()
    before = _status("VmRSS")
    _train(case, device)
    return _status("VmHWM") - before


def planned(case: Case, device: torch.device) -> int:
    """Return what a plan says."""
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else 0
    place = Place(cuda=cuda, narrow=cuda, memory=memory)
    of = outline(case.recipe())
    needed = of.trace(case.batch, place, bool(case.task.get("checkpointing", False)))
    return step_memory(of, needed, average=True, narrow=cuda).total


def _train(case: Case, device: torch.device) -> None:
    make = _generator if case.size == 0 else _tokenizer
    model, adversary, loss, batch = make(case, device)
    networks: list[nn.Module] = [model, *([adversary] if adversary is not None else [])]
    learners = [
        Learner(each, adamw(each, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05), 1e-4)
        for each in (network.to(device).train() for network in networks)
    ]
    average = ExponentialAverage(model, 0.999)
    config = FitConfig(steps=1, batch_size=case.batch, lr=1e-4)
    precision = "bfloat16" if device.type == "cuda" else "float32"
    step = TrainingStep(loss, model, learners, config, device, precision, average=average)
    for _ in range(_STEPS):
        step.take([batch], _LATE, 1e-4)[0].tolist()
        average.updates += 1


def _generator(case: Case, device: torch.device) -> tuple[nn.Module, None, Any, Any]:
    config = model_config(AiMConfig, AIM_PRESETS, case.model)
    codes = torch.zeros(case.batch, config.num_tokens, dtype=torch.long, device=device)
    checkpointing = bool(case.task.get("checkpointing", False))

    def loss(model: AiM, batch: CodeBatch, _rng: torch.Generator, _step: int) -> tuple[Tensor, dict[str, Any]]:
        return code_cross_entropy(model, batch.codes, batch.labels, checkpointing=checkpointing), {}

    return AiM(config), None, loss, CodeBatch(codes, codes[:, 0].contiguous())


def _tokenizer(case: Case, device: torch.device) -> tuple[nn.Module, nn.Module | None, Any, Any]:
    images = NoImages(case.size)
    model = VQModel(model_config(VQConfig, VQ_PRESETS, case.model))
    task = TokenizerTask(model, images, images, from_mapping(TokenizerTaskConfig, case.task, where="case"))
    task.use.to(device)
    pixels = torch.randint(256, (case.batch, 3, case.size, case.size), dtype=torch.uint8).to(device)
    return model, task.discriminator, task.loss, Batch(pixels, torch.zeros(case.batch, dtype=torch.long, device=device))


def _status(name: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def compare(name: str, device: str, *, as_in_training: bool = False) -> dict[str, Any]:
    """Measure and plan a case in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", "--device", device, "--case", name]
    if as_in_training:
        command.append("--as-in-training")
    else:
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if said.returncode:
        raise RuntimeError(said.stderr)
    return json.loads(said.stdout.splitlines()[-1])


def main() -> None:
    """Print a table of all cases, or the bytes of one as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--case", help="measure this one in this process")
    parser.add_argument("--as-in-training", action="store_true", help="let malloc keep what is freed")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    cases = CUDA_CASES if device.type == "cuda" else CPU_CASES
    if arguments.case is not None:
        case = cases[arguments.case]
        if arguments.as_in_training:
            keep_freed_memory()
        taken = measured(case, device)
        print(json.dumps({"measured": taken, "planned": planned(case, device)}))
        return
    print("| step | measured, MiB | planned, MiB | planned / measured |\n|---|---:|---:|---:|")
    for name in cases:
        found = compare(name, arguments.device, as_in_training=arguments.as_in_training)
        taken, expected = found["measured"], found["planned"]
        print(f"| {name} | {taken / 2**20:.0f} | {expected / 2**20:.0f} | {expected / taken:.3f} |", flush=True)


if __name__ == "__main__":
    main()
