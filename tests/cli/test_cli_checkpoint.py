"""Every command that reads a model opens it once: one request to the hub, and every tensor read once."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from aimamba.checkpoints import hub, weights
from aimamba.pipeline import Pipeline
from watching import watch_tensors

pytestmark = pytest.mark.usefixtures("photos")

HUB_ID = "someone/something"

COMMANDS = {
    "sample": "sample --model {model} -n 1 --classes 0 --engine plain",
    "sample --npz": "sample --model {model} -n 2 --npz samples.npz --engine plain",
    "info": "info {model}",
    "convert": "convert {model} --out new",
    "evaluate": "evaluate --model {model} -n 6 --reference photos --size 8",
    "evaluate-tokenizer": "evaluate-tokenizer {model} photos --size 12",
    "reconstruct": "reconstruct photos/cats/0.png --model {model} --size 8",
    "encode": "encode {model} photos --size 8 --out codes",
}
TOKENIZER_ONLY = {"evaluate-tokenizer", "reconstruct", "encode"}


@pytest.fixture(scope="module")
def folder(make_aim, make_vq, tmp_path_factory):
    """A pipeline of two classes at 8 pixels."""
    folder = tmp_path_factory.mktemp("hub")
    Pipeline(make_vq(), make_aim(num_classes=2, num_tokens=16), ("cats", "dogs")).save_pretrained(folder)
    return folder


class Reads:
    """Counts of requests to the hub, of configs read, and of tensors read by file and name."""

    def __init__(self):
        self.hub, self.json, self.tensors, self.pickles = Counter(), Counter(), Counter(), Counter()


@pytest.fixture
def reads(monkeypatch, folder):
    reads = Reads()

    def download(source, **_):
        reads.hub[source] += 1
        return str(folder)

    read_text, load = Path.read_text, torch.load

    def watched_tensor(path, name):
        reads.tensors[path, name] += 1

    def watched_text(path, *arguments, **options):
        if path.suffix == ".json" and path.is_relative_to(folder):
            reads.json[str(path.relative_to(folder))] += 1
        return read_text(path, *arguments, **options)

    def watched_load(path, **options):
        reads.pickles[path] += 1
        return load(path, **options)

    monkeypatch.setattr(hub, "snapshot_download", download)
    watch_tensors(monkeypatch, watched_tensor)
    monkeypatch.setattr(Path, "read_text", watched_text)
    monkeypatch.setattr(torch, "load", watched_load)
    return reads


def words(command, model):
    return COMMANDS[command].format(model=model).split()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hub_id(aimamba, folder, reads, command):
    status, _, err = aimamba(*words(command, HUB_ID))
    assert status == 0, err
    assert reads.hub == {HUB_ID: 1}
    assert set(reads.json.values()) == {1}
    assert {path.parent.name for path, _ in reads.tensors} == (
        set() if command == "info" else {"tokenizer"} if command in TOKENIZER_ONLY else {"tokenizer", "generator"}
    )
    assert set(reads.tensors.values()) <= {1}


@pytest.mark.parametrize("command", ["info", "convert", "sample"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_official_file_of_both_parts(aimamba, golden, here, reads, command, suffix):
    source, path = golden / "adaln" / "model.safetensors", here / f"official{suffix}"
    if suffix == ".pt":
        torch.save(weights.read_tensors(source), path)
        reads.tensors.clear()
    else:
        path.write_bytes(source.read_bytes())
    assert aimamba(*words(command, path.name)).status == 0
    assert set(reads.tensors.values()) == (set() if suffix == ".pt" else {1})
    assert [count for name, count in reads.pickles.items() if Path(name) == Path(path.name)] == (
        [1] if suffix == ".pt" else []
    )


def test_a_separate_tokenizer_is_opened_once_too(aimamba, models, folder, reads):
    command = ["sample", "--model", models / "generator", "--tokenizer", HUB_ID, "-n", 1, "--classes", 0]
    assert aimamba(*command).status == 0
    assert reads.hub == {HUB_ID: 1}
    assert set(reads.tensors.values()) == {1}


RECIPE = """
stage = "generator"
data = {source = "avatars:planets,sprouts", size = 8, per_class = 4, held_out_per_class = 1}
model = {width = 16, num_blocks = 1, state_size = 4, head_width = 8}
task = {sheet_pictures = 1}
fit = {steps = 1, batch_size = 4, lr = 1e-3}
"""


def test_the_tokenizer_of_a_training_run(aimamba, here, reads):
    (here / "aim.toml").write_text(RECIPE)
    status, _, err = aimamba("train", "aim.toml", "--tokenizer", HUB_ID, "--device", "cpu")
    assert status == 0, err
    assert reads.hub == {HUB_ID: 1}
    assert reads.json == {"tokenizer/config.json": 1}
    assert set(reads.tensors.values()) == {1}
