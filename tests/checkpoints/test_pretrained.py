"""Saving and loading models; whatever is wrong with a file is reported in one line."""

import json
import pickle
import shutil

import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from aimamba.checkpoints import hub, locate
from aimamba.errors import CheckpointError, ConfigError
from aimamba.models import AiM, VQModel
from refusals import one_line_error

MODELS = ("aim", "vq")


@pytest.fixture(params=MODELS)
def model(request, make_aim, make_vq):
    return make_aim(adaln="group") if request.param == "aim" else make_vq()


@pytest.fixture
def folder(make_aim, tmp_path):
    """A saved generator."""
    make_aim().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def refusal(source, cls=AiM, error=CheckpointError):
    """The one line that loading refuses with; it names the place."""
    with one_line_error(error) as caught:
        cls.from_pretrained(source)
    message = str(caught.value)
    assert str(source) in message
    return message


def same(first, second):
    theirs = second.state_dict()
    return first.state_dict().keys() == theirs.keys() and all(
        value.dtype == theirs[key].dtype and torch.equal(value, theirs[key])
        for key, value in first.state_dict().items()
    )


def test_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = type(model).from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert same(model, loaded)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_round_trip_in_float64(make_aim, tmp_path):
    model = make_aim(dtype=torch.float64)
    model.save_pretrained(tmp_path)
    assert same(model, AiM.from_pretrained(str(tmp_path), dtype=torch.float64))


def test_saving_again_writes_the_same_bytes(model, tmp_path):
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    model.save_pretrained(tmp_path / "one")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_dtype_on_loading(folder):
    model = AiM.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.word_embedding.weight.dtype == torch.bfloat16
    assert model.blocks[0].mixer.A_log.dtype == torch.float32


@pytest.mark.parametrize("inside", ["", "model", "generator", "model/generator"])
def test_places_where_a_generator_is_found(folder, tmp_path, inside):
    shutil.copytree(folder, tmp_path / "whole" / inside)
    assert same(AiM.from_pretrained(tmp_path / "whole"), AiM.from_pretrained(folder))


def test_a_pipeline_folder_gives_each_class_its_part(make_aim, make_vq, tmp_path):
    generator, tokenizer = make_aim(), make_vq()
    generator.save_pretrained(tmp_path / "generator")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert same(AiM.from_pretrained(tmp_path), generator)
    assert same(VQModel.from_pretrained(tmp_path), tokenizer)


def test_the_weights_file_itself(folder):
    assert same(AiM.from_pretrained(folder / "model.safetensors"), AiM.from_pretrained(folder))


def test_unknown_config_key(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"widht": 3}))
    message = refusal(folder, error=ConfigError)
    assert "'widht'" in message
    assert "did you mean 'width'" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": "16"}, "width must be int"),
        ({"mixer": "mamba"}, "did you mean 'mamba3' or 'mamba2'"),
        ({"positions": 3}, "learned"),
    ],
)
def test_config_value_of_the_wrong_kind(folder, change, named):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert named in refusal(folder, error=ConfigError)


def test_config_and_weights_that_disagree(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_blocks": 1, "vocab_size": 25}))
    message = refusal(folder)
    assert "left over (adaln.projections.1.bias, adaln.projections.1.weight, blocks.1.mixer.A_log, ...)" in message
    assert "1 of another shape (word_embedding.weight)" in message


def test_wrong_class(folder, make_vq, tmp_path):
    assert "class 'AiM', but a tokenizer is needed" in refusal(folder, cls=VQModel)
    make_vq().save_pretrained(tmp_path / "vq")
    assert "class 'VQModel', but a generator is needed" in refusal(tmp_path / "vq")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"AiM"', "\x00\xff"])
def test_damaged_config(folder, content):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert "JSON" in refusal(folder)


def test_missing_config(folder):
    (folder / "config.json").unlink()
    assert "config.json: missing" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_safetensors(folder, kept):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: round(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "cannot be read" in refusal(weights)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_truncated_pickle(make_vq, tmp_path, kept):
    path = tmp_path / "vq.pt"
    torch.save(make_vq().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: round(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "cannot be read" in refusal(path, cls=VQModel)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        b"\x80\x02}.",
        pickle.dumps(print),
        b"hello world",
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_is_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "vq.pt"
    path.write_bytes(content)
    refusal(path, cls=VQModel)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model": [3]}])
def test_a_pickle_that_is_not_a_state_dict(tmp_path, content):
    path = tmp_path / "vq.pt"
    torch.save(content, path)
    assert "expected a state dict" in refusal(path, cls=VQModel)


@pytest.mark.parametrize("name", ["readme.txt", "weights", "model.safetensors.index"])
def test_a_file_of_another_kind(tmp_path, name):
    (tmp_path / name).write_text("x")
    assert "expected a .safetensors" in refusal(tmp_path / name)


def test_a_folder_without_weights(tmp_path):
    assert "no model.safetensors there, in generator/ or in model/" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("layers.0.mixer.D", torch.zeros(2, dtype=torch.int64)),
        ("embeddings.word_embeddings.weight", torch.zeros(5)),
        ("layers.0.mixer.norm.weight", torch.zeros(3, 4)),
        ("layers.0.mixer.conv1d.weight", torch.zeros(384, 4)),
        ("layers.0.mixer.dt_bias", torch.zeros(0)),
        ("embeddings.position_embeddings.weight", torch.zeros(())),
    ],
)
def test_an_official_tensor_of_the_wrong_rank_or_dtype(golden, tmp_path, key, tensor):
    tensors = load_file(golden / "adaln" / "model.safetensors")
    shutil.copy(golden / "adaln" / "config.json", tmp_path)
    save_file(tensors | {f"mamba.backbone.{key}": tensor}, tmp_path / "model.safetensors")
    refusal(tmp_path)


@pytest.mark.parametrize(
    "source", ["nowhere", "./no/where", "/no/where", "no/such/folder", "~/model", "vq/file.pt", "a/"]
)
def test_a_path_that_does_not_exist_is_not_looked_up(monkeypatch, source):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert "no such file or folder" in refusal(source)


def test_packaged_models_load_by_name(monkeypatch, folder, tmp_path, make_aim):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.setattr(locate, "packaged_models", lambda: {"small-64": folder})
    monkeypatch.chdir(tmp_path)
    assert same(AiM.from_pretrained("small-64"), AiM.from_pretrained(folder))
    assert "small-46: no such file or folder (did you mean 'small-64'?)" in refusal("small-46")
    other = make_aim(seed=9)
    other.save_pretrained(tmp_path / "small-64")
    assert same(AiM.from_pretrained("small-64"), other), "a folder that is there goes first"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LocalEntryNotFoundError("offline\nsecond line"), "hub cannot be reached"),
        (HFValidationError("bad id\nsecond line"), "bad id"),
        (OSError("disk full\nsecond line"), "the download from the hub failed: disk full"),
        (OSError(), "OSError"),
    ],
)
def test_a_hub_id_that_cannot_be_downloaded(monkeypatch, error, said):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert said in refusal("someone/something")


def test_a_hub_id(monkeypatch, folder):
    asked = []

    def download(source, *, allow_patterns, **_):
        asked.append((source, allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert same(AiM.from_pretrained("someone/something"), AiM.from_pretrained(folder))
    assert asked == [("someone/something", ["*.json", "*.safetensors"])]


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_every_flipped_bit_of_the_weights_is_noticed(folder):
    weights = folder / "model.safetensors"
    bits = weights.stat().st_size * 8
    for bit in range(0, bits, bits // 60):
        flip(weights, bit)
        refusal(folder)
        flip(weights, bit)
    AiM.from_pretrained(folder)


def test_weights_of_gigabytes_are_verified_on_demand(folder, monkeypatch):
    monkeypatch.setattr("aimamba.checkpoints.checkpoint.LARGEST_VERIFIED", 100)
    flip(folder / "model.safetensors", 8 * (folder / "model.safetensors").stat().st_size - 9)
    AiM.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged, or not what was saved"):
        AiM.from_pretrained(folder, verify=True)
    monkeypatch.undo()
    AiM.from_pretrained(folder, verify=False)


def test_a_folder_without_sums_loads_as_before(folder):
    config = json.loads((folder / "config.json").read_text())
    assert list(config.pop("sha256")) == ["model.safetensors"]
    (folder / "config.json").write_text(json.dumps(config))
    assert same(AiM.from_pretrained(folder, verify=True), AiM.from_pretrained(folder))


@pytest.mark.parametrize("sums", [None, [], {}, {"model.safetensors": 1}, {"model.pt": "00"}])
def test_sums_that_are_none(folder, sums):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sha256": sums}))
    assert "expected 'sha256' to hold the sums of model.safetensors" in refusal(folder)
