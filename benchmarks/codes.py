"""A generator's codes at ImageNet's size, written and read by several ranks: ``python -m benchmarks.codes``.

Random codes of 1.28 million images in ten views are written as ``aimamba encode`` writes them, 6.6 GB in a temporary
folder that is removed at the end; ``--views 20`` is as many as ``ten-crop`` makes, 13 GB. Then a fresh process opens
them, with the files out of memory, and several processes read their slices of every batch at the same time, as ranks of
a training do. Times are without Python's imports.
"""

import argparse
import json
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aimamba.config import to_mapping
from aimamba.data.cache import store_array
from aimamba.data.codes_meta import META_FILE, CodesMeta
from aimamba.data.shards import LABELS_FILE, open_code_splits

_CODEBOOK, _GRID, _CLASSES, _SHARD = 16384, (16, 16), 1000, 4096
_HELD_OUT = 50_000
_SPARE = 2 * 2**30  # bytes of the disk that stay free


def write_codes(folder: Path, *, images: int, views: int, seed: int, progress: bool = False) -> CodesMeta:
    """Write random codes of one split as ``encode_to_shards`` would."""
    rng = np.random.default_rng(seed)
    meta = CodesMeta(
        tokenizer="0" * 64,
        codebook_size=_CODEBOOK,
        grid=_GRID,
        size=256,
        class_names=tuple(f"class-{number}" for number in range(_CLASSES)),
        views=tuple(f"view-{number}" for number in range(views)),
        pictures=images,
        shard_pictures=_SHARD,
        images="0" * 64,
    )
    folder.mkdir(parents=True)
    store_array(folder / LABELS_FILE, rng.integers(0, _CLASSES, images))
    (folder / META_FILE).write_text(json.dumps(to_mapping(meta)), encoding="utf-8")
    for name, start, stop in tqdm(
        list(meta.shards()), desc="writing", unit="shard", mininterval=5, disable=not progress
    ):
        shape = (stop - start, views, _GRID[0] * _GRID[1])
        store_array(folder / name, rng.integers(0, _CODEBOOK, shape, dtype=np.uint16))
    return meta


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from memory, so that the next reader is the first."""
    if hasattr(os, "posix_fadvise"):
        for path in folder.rglob("*.npy"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start_up(folder: Path, results: Any) -> None:
    """Put the seconds until a run has its codes, their fingerprint and its first batch."""
    began = time.perf_counter()
    codes = open_code_splits(folder)
    opened = time.perf_counter() - began
    codes.train.fingerprint()
    next(codes.train.batches(batch_size=256, seed=0))
    results.put((opened, time.perf_counter() - began))


def read_slices(folder: Path, rank: int, ranks: int, batch: int, seconds: float, ready: Any, results: Any) -> None:
    """Read one rank's slices of every batch, from when all ranks are ready; put what came of it."""
    train = open_code_splits(folder).train
    share = batch // ranks
    slices = train.batches(batch_size=share, seed=0, start=rank * share, stride=batch)
    next(slices)
    ready.wait()
    before, began, tokens, steps = _private_memory(), time.perf_counter(), 0, 0
    while time.perf_counter() - began < seconds:
        tokens += next(slices).codes.numel()
        steps += 1
    taken = time.perf_counter() - began
    results.put({"tokens_per_second": tokens / taken, "steps": steps, "before": before, "after": _private_memory()})


def _private_memory() -> int:
    """Return the bytes of this process that no file backs; pages of the codes are shared and can be dropped."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def read_all(folder: Path, *, ranks: int, batch: int, seconds: float) -> list[dict[str, float]]:
    """Let several processes read their slices at the same time."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(ranks), context.Queue()
    rest = (ranks, batch, seconds, ready, results)
    readers = [context.Process(target=read_slices, args=(folder, rank, *rest)) for rank in range(ranks)]
    for reader in readers:
        reader.start()
    found = []
    while len(found) < ranks:
        try:
            found.append(results.get(timeout=1))
        except queue.Empty:
            if any(reader.exitcode for reader in readers):
                ready.abort()
                raise RuntimeError("a reader has ended with an error, see above") from None
    for reader in readers:
        reader.join()
    return found


def main() -> None:
    """Write, open, read, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2048, help="images of a step, of all ranks together")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    arguments = parser.parse_args()
    tokens = _GRID[0] * _GRID[1]
    needed = 2 * tokens * (arguments.images * arguments.views + _HELD_OUT)
    free = shutil.disk_usage(arguments.folder or tempfile.gettempdir()).free
    if free < needed + _SPARE:
        sys.exit(f"{needed / 1e9:.1f} GB of codes do not fit: {free / 1e9:.1f} GB are free; give another --folder")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, began = Path(name), time.perf_counter()
        write_codes(folder / "train", images=arguments.images, views=arguments.views, seed=0, progress=True)
        write_codes(folder / "held-out", images=_HELD_OUT, views=1, seed=1)
        print(f"wrote {needed / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s")
        context = multiprocessing.get_context("spawn")
        for state in ("files not in memory", "again"):
            if state != "again":
                forget(folder)
            results = context.Queue()
            process = context.Process(target=start_up, args=(folder, results))
            process.start()
            opened, first = results.get(timeout=600)
            process.join()
            print(f"start-up, {state}: opened after {opened:.2f} s, fingerprint and first batch after {first:.2f} s")
        found = read_all(folder, ranks=arguments.ranks, batch=arguments.batch, seconds=arguments.seconds)
        total = sum(each["tokens_per_second"] for each in found)
        slowest = min(each["tokens_per_second"] for each in found)
        grown = max(each["after"] - each["before"] for each in found)
        steps = min(each["steps"] for each in found)
        print(
            f"{arguments.ranks} ranks at once on {os.cpu_count()} cores: {total / 1e6:.2f} M tokens/s together, the "
            f"slowest rank {slowest / 1e6:.2f} M; over {steps} steps or more private memory grew by at most "
            f"{grown / 2**20:.1f} MiB to {max(each['after'] for each in found) / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
