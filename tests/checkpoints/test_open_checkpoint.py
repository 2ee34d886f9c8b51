"""An opened checkpoint: what it holds, and what is read of its files."""

import argparse
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from aimamba.checkpoints import checkpoint as module
from aimamba.checkpoints import hub
from aimamba.checkpoints.checkpoint import open_checkpoint
from aimamba.checkpoints.locate import is_here
from aimamba.checkpoints.weights import WeightsFile, read_tensors
from aimamba.errors import CheckpointError
from aimamba.models import AiM, VQModel
from aimamba.pipeline import Pipeline
from refusals import one_line_error
from watching import watch_tensors

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def saved(make_aim, make_vq, tmp_path):
    """A saved pipeline."""
    Pipeline(make_vq(), make_aim(), NAMES).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def pickled(golden, tmp_path):
    """An official checkpoint of both parts in one pickle."""
    torch.save(load_file(golden / "adaln" / "model.safetensors"), tmp_path / "both.pt")
    return tmp_path / "both.pt"


@pytest.fixture
def tensors_read(monkeypatch):
    """Names of the tensors that were read from safetensors files, in order."""
    read = []
    watch_tensors(monkeypatch, lambda path, name: read.append(name))
    return read


@pytest.fixture
def pickles_read(monkeypatch):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(path) or load(path, **options))
    return read


def same(first, second):
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize(
    ("inside", "parts"),
    [
        ("", {"generator", "tokenizer"}),
        ("generator", {"generator"}),
        ("tokenizer", {"tokenizer"}),
        ("generator/model.safetensors", {"generator"}),
    ],
)
def test_parts_of_our_folders(saved, tensors_read, inside, parts):
    assert open_checkpoint(saved / inside).parts == parts
    assert not tensors_read, "headers are enough"


def test_parts_of_official_files(golden, pickled, tensors_read):
    assert open_checkpoint(golden / "adaln").parts == {"generator", "tokenizer"}
    assert open_checkpoint(golden / "group2").parts == {"generator"}
    assert open_checkpoint(pickled).parts == {"generator", "tokenizer"}
    assert not tensors_read


def test_a_part_in_the_wrong_folder_is_not_found(saved):
    shutil.rmtree(saved / "generator")
    shutil.move(saved / "tokenizer", saved / "generator")
    with pytest.raises(CheckpointError, match="holds neither a generator nor a tokenizer that aimamba knows"):
        _ = open_checkpoint(saved).parts


def test_a_required_part(saved):
    open_checkpoint(saved).require("tokenizer", "")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(saved / "generator").require("tokenizer", "do this")
    assert str(caught.value) == f"{saved / 'generator'}: holds a generator alone; do this"


def test_an_open_checkpoint_is_returned_as_it_is(saved):
    checkpoint = open_checkpoint(saved)
    assert open_checkpoint(checkpoint) is checkpoint
    assert same(AiM.from_pretrained(checkpoint), AiM.from_pretrained(saved))


def test_a_pipeline_reads_every_tensor_once(saved, tensors_read):
    checkpoint = open_checkpoint(saved)
    assert checkpoint.parts
    pipeline = Pipeline.from_pretrained(checkpoint)
    expected = [*pipeline.generator.state_dict(), *pipeline.tokenizer.state_dict()]
    assert sorted(tensors_read) == sorted(expected)


def test_the_hub_is_asked_once(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda source, **_: asked.append(source) or str(saved))
    configs, read_config = [], module._read_config
    monkeypatch.setattr(module, "_read_config", lambda path: configs.append(path) or read_config(path))
    checkpoint = open_checkpoint("someone/something")
    assert checkpoint.parts == {"generator", "tokenizer"}
    assert Pipeline.from_pretrained(checkpoint).class_names == NAMES
    assert asked == ["someone/something"]
    assert len(configs) == len(set(configs)) == 2


def test_one_part_of_an_official_file_is_read_alone(golden, tensors_read):
    checkpoint = open_checkpoint(golden / "adaln")
    keys = load_file(golden / "adaln" / "model.safetensors").keys()
    AiM.from_pretrained(checkpoint)
    assert sorted(tensors_read) == sorted(key for key in keys if key.startswith("mamba."))
    tensors_read.clear()
    VQModel.from_pretrained(checkpoint)
    assert sorted(tensors_read) == sorted(key for key in keys if key.startswith("vqvae."))


def test_a_pickle_is_read_once_for_both_parts(golden, pickled, pickles_read):
    checkpoint = open_checkpoint(pickled)
    assert checkpoint.parts
    pipeline = Pipeline.from_pretrained(checkpoint)
    assert pickles_read == [pickled]
    assert same(pipeline.generator, AiM.from_pretrained(golden / "adaln"))
    assert same(pipeline.tokenizer, VQModel.from_pretrained(golden / "adaln"))


@pytest.mark.parametrize("kind", ["ours", "official", "pickled"])
def test_two_models_of_one_checkpoint_share_no_memory(golden, saved, pickled, kind):
    checkpoint = open_checkpoint({"ours": saved, "official": golden / "adaln", "pickled": pickled}[kind])
    first, second = (VQModel.from_pretrained(checkpoint) for _ in range(2))
    assert same(first, second)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    assert not same(first, second)
    assert same(second, VQModel.from_pretrained(checkpoint))


def test_on_the_meta_device_our_weights_are_not_read(saved, tensors_read):
    pipeline = Pipeline.from_pretrained(saved, device="meta")
    assert not tensors_read
    loaded = Pipeline.from_pretrained(saved)
    for shape, model in ((pipeline.generator, loaded.generator), (pipeline.tokenizer, loaded.tokenizer)):
        assert shape.config == model.config
        assert shape.num_parameters() == model.num_parameters()
        assert all(parameter.is_meta for parameter in shape.parameters())
        assert [parameter.dtype for parameter in shape.parameters()] == [p.dtype for p in model.parameters()]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop("norm.weight"), "1 missing (norm.weight)"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "1 left over (more)"),
        (lambda tensors: tensors.update({"norm.weight": torch.zeros(3)}), "1 of another shape (norm.weight)"),
        (
            lambda tensors: tensors.update({"norm.weight": torch.zeros(16, dtype=torch.int32)}),
            "1 not of floating point (norm.weight)",
        ),
    ],
)
def test_the_meta_device_is_as_strict(saved, change, named):
    path = saved / "generator" / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    config = json.loads(path.with_name("config.json").read_text())
    del config["sha256"]
    path.with_name("config.json").write_text(json.dumps(config))
    for device in ("meta", "cpu"):
        with pytest.raises(CheckpointError) as caught:
            AiM.from_pretrained(saved, device=device)
        assert named in str(caught.value)


def test_the_outline_of_a_file_is_its_tensors_without_values(tmp_path):
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
    tensors = {str(dtype): torch.ones(2, 3, dtype=dtype) for dtype in dtypes} | {"scalar": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        outline = WeightsFile(tmp_path / name).outline
        assert all(tensor.is_meta for tensor in outline.values())
        expected = {key: (value.shape, value.dtype) for key, value in tensors.items()}
        assert {key: (value.shape, value.dtype) for key, value in outline.items()} == expected
        read = read_tensors(tmp_path / name)
        assert all(torch.equal(read[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("padding", range(8))
def test_tensors_begin_where_torch_would_put_them(tmp_path, padding):
    """Matrix products may round otherwise at other addresses; in a file the length of the header decides."""
    expected = {name: torch.arange(float(size)) for name, size in (("a", 3), ("b", 17), ("c", 1))}
    save_file(expected, tmp_path / "model.safetensors", metadata={"padding": "x" * 8 * padding})
    found = read_tensors(tmp_path / "model.safetensors")
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_missing_file_is_named(tmp_path):
    for name in ("x.safetensors", "x.pt"):
        with pytest.raises(CheckpointError, match=rf"{name}: no such file; check the path"):
            read_tensors(tmp_path / name)


def test_an_empty_name_is_not_the_present_folder(saved, monkeypatch):
    monkeypatch.chdir(saved)
    with pytest.raises(CheckpointError, match="a model is a path, a name or a hub id, got an empty text"):
        open_checkpoint("")
    assert not is_here("")
    assert is_here(".")
    assert not is_here("x" * 5000)


def test_class_names(saved, golden):
    assert open_checkpoint(saved).class_names() == NAMES
    assert open_checkpoint(saved / "generator").class_names() == NAMES
    assert open_checkpoint(golden / "adaln").class_names() is None


def test_the_generators_folder_stands_for_its_pipeline(saved):
    loaded = Pipeline.from_pretrained(saved / "generator")
    assert same(loaded.tokenizer, VQModel.from_pretrained(saved))
    assert loaded.class_names == NAMES


def refused(place):
    with pytest.raises(CheckpointError) as caught:
        Pipeline.from_pretrained(place)
    return str(caught.value)


def test_every_flipped_bit_of_pipeline_json_is_noticed(saved):
    path = saved / "pipeline.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            changed = json.loads(damaged) != json.loads(whole)
        except ValueError:
            changed = True
        if changed:  # else only white space differs
            assert "pipeline.json" in refused(saved)


def test_the_parts_of_a_pipeline_belong_together(saved, make_vq, tmp_path):
    make_vq(seed=5).save_pretrained(saved / "tokenizer")
    assert "tokenizer/config.json: damaged, or not what was saved" in refused(saved)
    AiM.from_pretrained(saved)  # which does not need the other part
    make_vq().save_pretrained(saved / "tokenizer")
    assert Pipeline.from_pretrained(saved).class_names == NAMES


def test_a_changed_class_name_names_the_way_out(saved):
    content = json.loads((saved / "pipeline.json").read_text())
    content["class_names"][0] = "z"
    (saved / "pipeline.json").write_text(json.dumps(content))
    assert "remove 'sha256' from" in refused(saved)
    del content["sha256"]
    (saved / "pipeline.json").write_text(json.dumps(content))
    assert Pipeline.from_pretrained(saved).class_names[0] == "z"


@pytest.fixture
def llamagen(golden):
    """The state dict of a tokenizer as LlamaGen saves it, and other weights of the same shape."""
    tensors = load_file(golden / "adaln" / "model.safetensors")
    right = {key.removeprefix("vqvae."): value for key, value in tensors.items() if key.startswith("vqvae.")}
    return right, {key: value + 1 for key, value in right.items()}


@pytest.mark.parametrize(
    "nested", [("ema", "model"), ("ema", "state_dict"), ("model", "state_dict"), ("ema",), ("state_dict",)]
)
def test_the_average_is_read_as_in_llamagens_own_code(golden, llamagen, tmp_path, capsys, nested):
    torch.save(dict(reversed([*zip(nested, llamagen, strict=False)])) | {"steps": 3}, tmp_path / "vq.pt")
    assert same(VQModel.from_pretrained(tmp_path / "vq.pt"), VQModel.from_pretrained(golden / "adaln"))
    notice = f"{tmp_path / 'vq.pt'}: read '{nested[0]}', which stands beside '{nested[1]}'" if nested[1:] else ""
    assert capsys.readouterr().err.startswith(notice)


def test_the_weights_of_a_pickle_can_be_chosen(golden, llamagen, tmp_path):
    torch.save({"ema": llamagen[1], "model": llamagen[0]}, tmp_path / "vq.pt")
    chosen = open_checkpoint(tmp_path / "vq.pt", weights="model")
    assert same(VQModel.from_pretrained(chosen), VQModel.from_pretrained(golden / "adaln"))
    with one_line_error(CheckpointError, match=r"vq\.pt: has no weights 'state_dict'; it has 'ema', 'model'"):
        _ = open_checkpoint(tmp_path / "vq.pt", weights="state_dict").parts
    with one_line_error(CheckpointError, match="expected the weights 'ema', 'model', 'state_dict', got 'best'"):
        _ = open_checkpoint(tmp_path / "vq.pt", weights="best").parts
    with one_line_error(CheckpointError, match="holds one set of weights"):
        _ = open_checkpoint(golden / "adaln", weights="ema").parts


@pytest.mark.parametrize("with_config", [True, False])
def test_a_folder_with_a_pickle_alone(golden, tmp_path, with_config):
    torch.save(load_file(golden / "adaln" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    if with_config:
        shutil.copy(golden / "adaln" / "config.json", tmp_path)
    assert open_checkpoint(tmp_path).parts == {"generator", "tokenizer"}
    assert same(VQModel.from_pretrained(tmp_path), VQModel.from_pretrained(golden / "adaln"))
    assert same(AiM.from_pretrained(tmp_path), AiM.from_pretrained(golden / "adaln"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrapped_models(golden, llamagen, tmp_path, prefix):
    torch.save({"model": {prefix + key: value for key, value in llamagen[0].items()}}, tmp_path / "vq.pt")
    assert same(VQModel.from_pretrained(tmp_path / "vq.pt"), VQModel.from_pretrained(golden / "adaln"))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_training_checkpoint_of_llamagen_holds_its_arguments(golden, llamagen, tmp_path):
    content = {"model": llamagen[0], "optimizer": {"state": {}}, "steps": 5, "args": argparse.Namespace(lr=1e-4)}
    torch.save(content, tmp_path / "vq.pt")
    assert same(VQModel.from_pretrained(tmp_path / "vq.pt"), VQModel.from_pretrained(golden / "adaln"))
    hostile = argparse.Namespace(lr=Hostile(str(tmp_path / "executed")))
    for arguments in (hostile, Hostile(str(tmp_path / "executed"))):
        torch.save({**content, "args": arguments}, tmp_path / "vq.pt")
        with pytest.raises(CheckpointError):
            VQModel.from_pretrained(tmp_path / "vq.pt")
        assert not (tmp_path / "executed").exists()
