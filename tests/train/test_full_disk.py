"""A full disk: one line with the file and the room needed, the last good state as it was, nothing half-written."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from toy_task import ToyTask, settings

from aimamba.data.cache import store_array
from aimamba.data.npz import write_npz
from aimamba.data.png_text import write_png
from aimamba.evaluation.kept_codes import KeptCodes
from aimamba.studies.results import Results
from aimamba.train.checkpoint import Checkpoint, write_checkpoint
from aimamba.train.fit import fit
from aimamba.train.lock import locked
from aimamba.train.parallel.checkpoint import ShardedWriter
from aimamba.train.records import Records
from aimamba.train.result import save_result
from aimamba.train.tensorboard import TensorBoard
from full_disk import FullAt, in_child, mount_small_disk, no_file_may_grow, no_room

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
GUIDANCE = {"budget": 2, "recipe": {"kind": "guidance", "variants": []}}
Write = Callable[[], object]


def writers(folder: Path, make_vq) -> dict[str, tuple[Write, Write]]:
    """Return, by the file that it writes, what writes a good file, and what writes another in its place."""
    for name in ("run", "sharded"):
        (folder / name).mkdir()
    codes, records = KeptCodes(folder / "kept", {}), Records(folder / "run", step=0, tensorboard=False)
    board = TensorBoard(folder / "run", step=0)
    many = dict.fromkeys(map("number {}".format, range(200)), 1.0)  # more than a page, which is what a file gets
    checkpoint = folder / "run" / "checkpoint.pt"

    def save(step: int) -> None:
        write_checkpoint(checkpoint, Checkpoint(step=step, seconds=0.0, recipe="", parts=weights(step)), count=2)

    def image(shade: int) -> None:
        write_png(folder / "a.png", Image.fromarray(NOISE + np.uint8(shade)), "{}")

    def npz(seed: int) -> None:
        write_npz(folder / "a.npz", iter([NOISE[None] + np.uint8(seed)]), labels=None, size=64, count=1)

    def result(seed: int) -> None:
        save_result(folder / "run", f"seed = {seed}", make_vq(seed=seed).save_pretrained)

    def study(seed: int) -> None:
        Results.begin(folder / "results.json", "guidance", GUIDANCE).add(f"s-{seed}", {"provenance": {}, "samples": []})

    sharded = sharded_writer(folder / "sharded")
    kinds: dict[str, Callable[[int], object]] = {
        "run/checkpoint.pt": save,
        "sharded/checkpoint.dcp.partial": sharded,
        "a.npy": lambda seed: store_array(folder / "a.npy", NOISE + np.uint8(seed)),
        "a.png": image,
        "a.npz": npz,
        "run/metrics.jsonl": lambda step: records.write(step, "held-out", many),
        "run/sheets/step-000002.png": lambda step: records.sheet(step, Image.fromarray(NOISE)),
        "run/tensorboard/events": lambda step: board.write(step, "train", many),
        "run/model.partial/model.safetensors": result,
        "kept/codes-": lambda seed: codes.add(8 * seed, np.full((4, 4), seed, np.int32)),
        "results.json": study,
    }
    return {name: (lambda write=write: write(1), lambda write=write: write(2)) for name, write in kinds.items()}


def weights(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"weight": torch.full((100, 100), float(seed))}}


def sharded_writer(out: Path) -> Callable[[int], object]:
    """Write checkpoints as several processes do, in one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    writer, mesh = ShardedWriter(out, count=2), init_device_mesh("cpu", (1,))

    def write(step: int) -> None:
        parts = {"model": {"weight": distribute_tensor(weights(step)["model"]["weight"], mesh)}, "best": {}}
        writer.begin(step, 0.0, "", {}, parts)
        writer.finish()

    return write


def content(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != "filler"}


@pytest.mark.parametrize("kind", ["small disk", "limit"])
def test_every_kind_of_file(tmp_path, make_vq, kind):
    disk = tmp_path / "disk"
    disk.mkdir()

    def check() -> None:
        if kind == "small disk" and not mount_small_disk(disk, 2 << 20):
            (tmp_path / "skipped").touch()
            return
        full = no_room if kind == "small disk" else no_file_may_grow
        said = r"No space left on device \((more than )?[\d,.]+ (bytes|MB) needed, 0 bytes free\)"
        for name, (good, other) in writers(disk, make_vq).items():
            good()
            before = content(disk)
            with full(disk), pytest.raises(OSError) as error:  # noqa: PT011
                other()
            assert str(error.value.filename).startswith(str(disk / name)), name
            assert re.fullmatch(said if kind == "small disk" else "File too large", error.value.strerror), name
            after = content(disk)
            grown = {path for path in after if path.endswith("metrics.jsonl") or "tfevents" in path}
            assert after.keys() == before.keys(), name
            assert all(after[path] == before[path] for path in after.keys() - grown), name
            other()
        with full(disk), locked(disk / "run"):
            pass
        (tmp_path / "done").touch()

    in_child(check)
    if (tmp_path / "skipped").exists():
        pytest.skip("mounting a file system is not permitted")
    assert (tmp_path / "done").exists()


def test_a_run_goes_on_after_every_moment_at_which_the_disk_was_full(tmp_path, metrics, monkeypatch):
    def train(out: Path) -> None:
        fit(ToyTask(), settings(checkpoints=2), out, tensorboard=True, quiet=True)

    with monkeypatch.context() as patch:
        counted = FullAt(patch, 0)
        train(tmp_path / "whole")
    assert counted.count > 10
    for number in range(1, counted.count + 1):
        out = tmp_path / str(number)
        with monkeypatch.context() as patch:
            FullAt(patch, number)
            with pytest.raises(OSError, match=r"No space left on device \(.* needed, .* free\)"):
                train(out)
        drafts = [path for path in out.rglob("*") if "partial" in path.name or path.name.startswith(".")]
        assert drafts == []
        train(out)
        assert metrics(out) == metrics(tmp_path / "whole")
        for name in ("model/weights.pt", "model-last/weights.pt"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
