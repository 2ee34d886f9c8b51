"""Which model on the hub, which version, and in which dtype it is loaded and saved."""

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from aimamba.checkpoints import hub
from aimamba.errors import CheckpointError, ConfigError
from aimamba.models import AiM, VQModel
from aimamba.pipeline import Pipeline
from refusals import one_line_error


@pytest.fixture
def saved(make_aim, make_vq, tmp_path):
    Pipeline(make_vq(), make_aim()).save_pretrained(tmp_path / "repository" / "small")
    return tmp_path / "repository"


@pytest.fixture
def asked(saved, monkeypatch):
    calls = []

    def download(source, **settings):
        calls.append((source, settings))
        return str(saved / "small" if source == "someone/tokenizer" else saved)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


def test_every_argument_reaches_the_hub(asked, tmp_path):
    place = {"revision": "v1", "cache_dir": tmp_path, "local_files_only": True, "token": "secret"}
    Pipeline.from_pretrained("someone/something", subfolder="small", **place)
    assert asked == [("someone/something", {**place, "allow_patterns": ["small/*.json", "small/*.safetensors"]})]
    VQModel.from_pretrained("someone/something", subfolder="small/tokenizer")
    assert asked[1][1]["allow_patterns"][0] == "small/tokenizer/*.json"


def test_a_separate_tokenizer_has_its_own_revision(asked):
    Pipeline.from_pretrained(
        "someone/x", tokenizer="someone/tokenizer", revision="v1", token="secret", subfolder="small"
    )
    assert [(source, call["revision"], call["token"]) for source, call in asked][:2] == [
        ("someone/x", "v1", "secret"),
        ("someone/tokenizer", None, "secret"),
    ]


def test_a_folder_inside_a_folder(saved):
    assert AiM.from_pretrained(saved, subfolder="small/generator").num_parameters()
    assert AiM.from_pretrained(saved, subfolder="small", cache_dir="unused", token="unused").num_parameters()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"revision": "v1"}, CheckpointError, "is on this machine and has no revision v1"),
        ({"subfolder": "large"}, CheckpointError, "has no folder large"),
        ({"subfolder": "../x"}, ConfigError, "subfolder must lie inside"),
        ({"subfolder": "/x"}, ConfigError, "subfolder must lie inside"),
        ({"revison": "v1"}, ConfigError, "from_pretrained takes no revison (did you mean 'revision'?)"),
        ({"dtype": "float17"}, ConfigError, "dtype 'float17' is unknown"),
        ({"dtype": "float16", "torch_dtype": "float32"}, ConfigError, "are the same setting"),
    ],
)
@pytest.mark.parametrize("cls", [AiM, Pipeline])
def test_arguments_that_are_none(saved, cls, arguments, error, said):
    with one_line_error(error) as caught:
        cls.from_pretrained(saved, **{"subfolder": "small", **arguments})
    assert said in str(caught.value)


def test_what_is_not_downloaded_yet(monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with one_line_error(CheckpointError) as caught:
        AiM.from_pretrained("someone/something", local_files_only=True, revision="v2")
    assert "not downloaded yet at revision v2" in str(caught.value)


def test_weights_return_to_the_dtype_they_came_in(saved, tmp_path):
    small = saved / "small" / "generator"
    save_file({key: value.half() for key, value in load_file(small / "model.safetensors").items()}, tmp_path / "x")
    (tmp_path / "x").replace(small / "model.safetensors")
    config = (small / "config.json").read_text()
    (small / "config.json").write_text(config[: config.index(',\n  "sha256"')] + "\n}\n")
    halves = load_file(small / "model.safetensors")

    model = AiM.from_pretrained(small)
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert {value.dtype for value in again.values()} == {torch.float16}
    assert all(torch.equal(again[key], halves[key]) for key in halves)

    assert AiM.from_pretrained(small, dtype="auto").dtype == torch.float16
    assert AiM.from_pretrained(small, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "wide", dtype="float32")
    assert load_file(tmp_path / "wide" / "model.safetensors")["word_embedding.weight"].dtype == torch.float32

    with torch.no_grad():
        model.word_embedding.weight[0, 0] = 1 / 3  # no half
    model.save_pretrained(tmp_path / "changed")
    changed = load_file(tmp_path / "changed" / "model.safetensors")
    assert changed["word_embedding.weight"][0, 0] == torch.tensor(1 / 3), "nothing is lost"


@pytest.mark.parametrize("source", ["a" * 5000, "a\0b"])
def test_what_names_no_model(source):
    with one_line_error(CheckpointError) as caught:
        AiM.from_pretrained(source)
    assert len(str(caught.value)) < 200
