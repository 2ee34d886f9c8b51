"""Memory, open files and threads of long work stay flat: ``python -m benchmarks.soak``.

A tiny tokenizer and a tiny generator are trained with evaluations, sheets and checkpoints, then images are sampled, all
in this process, which reads its own numbers on the way. The first fifth may still grow: kernels are compiled, libraries
keep buffers, malloc finds its size. Ends with status 1 if anything grows after it.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aimamba.data.codes import CodeSet
from aimamba.generation import SamplingConfig
from aimamba.models import AiM, AiMConfig, VQConfig, VQModel
from aimamba.pipeline import Pipeline
from aimamba.train.fit import FitConfig, fit
from aimamba.train.generator import GeneratorTask
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.tokenizer import TokenizerTask, TokenizerTaskConfig

MORE = 8 * 2**20  # bytes that the last fifth may have more than the second
_READINGS = 100
_CLASSES = ("one", "two", "three")
_AIM = AiMConfig(
    width=32, num_blocks=2, vocab_size=32, num_tokens=16, num_classes=3, state_size=32, head_width=32, adaln="group"
)
_VQ = VQConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=32, norm_groups=4)


class Reading(NamedTuple):
    """What a process holds after some units of work.

    Attributes:
        done: Steps or samplings so far.
        memory: Bytes that no file backs.
        handles: Open files.
        threads: Threads.
    """

    done: int
    memory: int
    handles: int
    threads: int


def read(done: int) -> Reading:
    """Read the numbers of this process from /proc."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    memory = next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
    return Reading(done, memory, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))


def growth(readings: Sequence[Reading], more: int = MORE) -> str | None:
    """Say what has grown from the second fifth of the readings to the last; None if nothing has."""
    fifth = len(readings) // 5
    if fifth == 0:
        raise ValueError(f"at least five readings are needed, got {len(readings)}")
    early, late = readings[fifth : 2 * fifth], readings[-fifth:]
    before, after = (statistics.median(reading.memory for reading in some) for some in (early, late))
    if after > before + more:
        return f"memory has grown from {before / 2**20:.1f} to {after / 2**20:.1f} MiB"
    for name in ("handles", "threads"):
        most, least = (max(getattr(each, name) for each in early), min(getattr(each, name) for each in late))
        if least > most:
            return f"{name} have grown from {most} to {least}"
    return None


class _Noise:
    """Images of noise, kept."""

    size = 16
    class_names = _CLASSES

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(count) % len(_CLASSES)
        self._pixels = rng.integers(0, 256, (count, self.size, self.size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, _rng: np.random.Generator | None = None) -> Any:
        return self._pixels[index]


def train(stage: str, steps: int, *, watch: Callable[[int], None] = lambda done: None) -> list[Reading]:
    """Train a tiny model; return a hundred readings or fewer.

    Args:
        stage: ``tokenizer`` or ``generator``.
        steps: Number of steps.
        watch: Called after every step with the number of steps so far.
    """
    every, readings = max(1, steps // _READINGS), []
    tokenizer, rng = VQModel(_VQ), np.random.default_rng(0)
    task: Any
    if stage == "tokenizer":
        settings = TokenizerTaskConfig(adversarial_weight=0.1, adversarial_start=0, discriminator_layers=1)
        task = TokenizerTask(tokenizer, _Noise(60), _Noise(12), settings)
    else:
        codes = [rng.integers(0, 32, (count, 2, 16)).astype(np.uint16) for count in (60, 12)]
        train_set, held_out = (CodeSet(some, np.arange(len(some)) % len(_CLASSES)) for some in codes)
        of_task = GeneratorTaskConfig(tokenizer="none", token_dropout=0.1, sheet_pictures=1)
        task = GeneratorTask(AiM(_AIM), tokenizer, train_set, held_out, _CLASSES, of_task)
    whole = task.batches

    def watched(*args: Any, **options: Any) -> Iterator[Any]:
        for done, batch in enumerate(whole(*args, **options)):
            watch(done)
            if done % every == 0:
                readings.append(read(done))
            yield batch

    task.batches = watched
    often = max(1, steps // 10)
    config = FitConfig(
        steps=steps,
        batch_size=4,
        lr=1e-3,
        ema_decay=0.99,
        evaluate_every=often,
        sheet_every=often,
        checkpoint_every=often,
        checkpoints=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(task, config, Path(folder) / "run", quiet=True)
    return readings


def sample(count: int, *, watch: Callable[[int], None] = lambda done: None) -> list[Reading]:
    """Sample images in so many calls, guided and not, one to three at a time; return readings as ``train``."""
    pipeline, every, readings = Pipeline(VQModel(_VQ), AiM(_AIM), _CLASSES), max(1, count // _READINGS), []
    for done in range(count):
        watch(done)
        if done % every == 0:
            readings.append(read(done))
        settings = SamplingConfig(cfg_scale=1.0 + done % 2, top_k=(0, 8)[done % 3 == 0], seed=done)
        pipeline(list(_CLASSES[: 1 + done % 3]), config=settings)
    return readings


def main() -> None:
    """Do the work and print a line for each kind of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="training steps of each stage (default 5,000)")
    parser.add_argument("--samplings", type=int, default=2000, help="calls of a pipeline (default 2,000)")
    arguments = parser.parse_args()
    work: list[tuple[str, Callable[[], list[Reading]]]] = [
        (f"{arguments.steps:,} steps of a generator", lambda: train("generator", arguments.steps)),
        (f"{arguments.steps:,} steps of a tokenizer", lambda: train("tokenizer", arguments.steps)),
        (f"{arguments.samplings:,} samplings", lambda: sample(arguments.samplings)),
    ]
    grown = False
    for name, do in work:
        readings = do()
        fifth = len(readings) // 5
        memory = [statistics.median(r.memory for r in some) / 2**20 for some in (readings[fifth : 2 * fifth],
                  readings[-fifth:])]  # fmt: skip
        late = readings[fifth:]
        found = growth(readings)
        grown |= found is not None
        print(
            f"{name}: {memory[0]:.1f} MiB in the second fifth, {memory[1]:.1f} in the last; "
            f"{min(r.handles for r in late)} to {max(r.handles for r in late)} open files, "
            f"{min(r.threads for r in late)} to {max(r.threads for r in late)} threads: {found or 'flat'}",
            flush=True,
        )
    sys.exit(int(grown))


if __name__ == "__main__":
    main()
