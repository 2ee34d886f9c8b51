"""Encoding that is stopped and continued, and that several processes share."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aimamba.data import encoding
from aimamba.data.encoding import encode_to_shards
from aimamba.distributed import Team, find_place
from aimamba.errors import DataError
from aimamba.models import VQConfig, VQModel
from aimamba.sharing import Sharing
from tests.refusals import one_line_error

sys.path.append(str(Path(__file__).parents[1] / "train"))

COUNT, BATCH = 23, 2
SHAPE = VQConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=8, norm_groups=4, codebook_size=24)


class Noise:
    class_names = ("a", "b")
    labels = np.arange(COUNT) % 2
    size = 8
    captioned = True

    def captions(self, index):
        return (f"noise {index}", f"picture {index}")

    def __len__(self) -> int:
        return COUNT

    def image(self, index, rng=None):
        return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)


class Tokenizer(VQModel):
    """Counts the images that it encodes; ``stop`` is called once there are so many."""

    def __init__(self, after: int = 1000, stop=None) -> None:
        super().__init__(SHAPE)
        self.init_weights(torch.Generator().manual_seed(0))
        self.eval()
        self.after, self.stop, self.count = after, stop, 0

    def encode(self, images):
        if self.count >= self.after:
            self.stop()
        self.count += len(images)
        return super().encode(images)


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def encode(tokenizer, folder, *, batch_size=BATCH, **options):
    return encode_to_shards(tokenizer, Noise(), folder, batch_size=batch_size, shard_pictures=10, **options)


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "whole"
    encode(Tokenizer(), folder)
    assert sorted(bytes_of(folder)) == [
        "captions.jsonl",
        "codes-00000.npy",
        "codes-00001.npy",
        "codes-00002.npy",
        "labels.npy",
        "meta.json",
        "sums.json",
    ]
    return bytes_of(folder)


def test_no_batch_is_encoded_twice(tmp_path, whole):
    shown = []
    with pytest.raises(KeyboardInterrupt):
        encode(Tokenizer(after=12, stop=interrupt), tmp_path)
    damaged = tmp_path / "parts" / "codes-0000000004-0000000006.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = Tokenizer()
    encode(again, tmp_path, progress=lambda *done: shown.append(done))
    assert again.count == COUNT - 10
    assert (shown[0], shown[-1]) == ((10, COUNT), (COUNT, COUNT))
    assert bytes_of(tmp_path) == whole
    assert not (tmp_path / "parts").exists()
    finished = Tokenizer()
    encode(finished, tmp_path)
    assert finished.count == 0


def test_parts_of_another_batch_size_are_not_left(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode(Tokenizer(after=4, stop=interrupt), tmp_path)
    again = Tokenizer()
    encode(again, tmp_path, batch_size=3)
    assert again.count == COUNT
    assert not (tmp_path / "parts").exists()


def test_a_batch_that_is_not_seen_is_encoded_where_it_is_needed(tmp_path, whole):
    """As on a network disk, which shows what another machine has written only after a while."""

    class Late(Sharing):
        def units(self, count, show=None):
            for path in (tmp_path / "parts").glob("codes-*0-*.npy"):
                path.unlink()
            return super().units(count, show)

    tokenizer = Tokenizer()
    encode(tokenizer, tmp_path, sharing=Late())
    assert tokenizer.count == COUNT + 3 * BATCH
    assert bytes_of(tmp_path) == whole


def test_a_process_with_other_images_is_refused(tmp_path):
    class Elsewhere(Sharing):
        def once(self, make):
            values = make()
            return [values[0], "0" * 64, *values[2:]]

    with one_line_error(DataError, "not all processes have the same images and tokenizer"):
        encode(Tokenizer(), tmp_path, sharing=Elsewhere())


@pytest.mark.parametrize("lost", ["meta.json", "codes-00001.npy"])
def test_a_folder_that_not_all_machines_see_is_refused(tmp_path, monkeypatch, lost):
    class Elsewhere(Sharing):
        def once(self, make):
            if (tmp_path / "codes-00001.npy").exists():
                (tmp_path / lost).unlink()
            value = make()
            if lost == "meta.json":
                (tmp_path / lost).unlink(missing_ok=True)
            return value

    monkeypatch.setattr(encoding, "_SEEN_WITHIN", 0.1)
    with one_line_error(DataError, "name a folder on a disk that all machines share"):
        encode(Tokenizer(), tmp_path, sharing=Elsewhere())


def share(rank, folder, after):
    shown, tokenizer = [], Tokenizer(after, kill) if rank == 1 else Tokenizer()
    with Team(find_place(), torch.device("cpu"), timeout=5.0) as team:
        encode(tokenizer, folder, sharing=Sharing(team), progress=lambda *done: shown.append(done))
    return {"shown": shown, "count": tokenizer.count}


def test_processes_share_go_on_after_a_loss_and_write_the_same_bytes(tmp_path, whole):
    from ranks import Ranks, together

    folder = tmp_path / "codes"
    ranks = Ranks(2, share, folder, 4, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [2, -signal.SIGKILL]
    assert "rank 0 stops" in ranks.errors[0]
    there = len(list((folder / "parts").glob("*.npy")))
    assert there >= 2, "what the lost process had finished"
    found = together(3, share, folder, 1000, logs=tmp_path)
    assert bytes_of(folder) == whole
    left = sum(one["count"] for one in found)
    assert left == found[0]["shown"][-1][0] - found[0]["shown"][0][0] > 0, "each once"
    assert found[0]["shown"][-1] == (COUNT, COUNT)
    assert found[1]["shown"] == found[2]["shown"] == [], "the first process shows the progress of all"
