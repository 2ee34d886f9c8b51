"""Adapters in the format of peft, written by hand: peft itself is not needed to read them."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from aimamba.checkpoints.adapter import ADAPTER_CONFIG_FILE, ADAPTER_FILE, DIGEST, base_digest, merge_layers
from aimamba.checkpoints.checkpoint import open_checkpoint
from aimamba.config import to_mapping
from aimamba.errors import CheckpointError
from aimamba.models import AiM
from refusals import one_line_error

LAYER = "blocks.1.mixer.in_proj"
A, B = (f"base_model.model.{LAYER}.lora_{part}.weight" for part in "AB")


@pytest.fixture
def base(make_aim, tmp_path):
    model = make_aim()
    model.save_pretrained(tmp_path / "base")
    return model


@pytest.fixture
def write(base, tmp_path):
    """Write an adapter of rank 2 and scale 3 for one layer and the class table, with changes."""
    out = base.blocks[1].mixer.in_proj.out_features
    rng = torch.Generator().manual_seed(0)
    tensors = {
        A: torch.randn(2, 16, generator=rng),
        B: torch.randn(out, 2, generator=rng),
        "base_model.model.condition.table.weight": torch.randn(3, 16, generator=rng),
    }
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base"), "r": 2, "lora_alpha": 6}

    def write(*, remove=(), metadata=None, more=None, **changes):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        kept = {name: tensor for name, tensor in {**tensors, **(more or {})}.items() if name not in remove}
        save_file(kept, folder / ADAPTER_FILE, metadata=metadata)
        (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps({**config, **changes}))
        settings = {**to_mapping(base.config), "num_classes": 2}
        (folder / "config.json").write_text(json.dumps({"class": "AiM", **settings}))
        return folder, tensors

    return write


def test_products_are_added_and_whole_tensors_replaced(base, write):
    folder, tensors = write(metadata={DIGEST: base_digest(base.state_dict())})
    model = AiM.from_pretrained(folder)
    expected = base.state_dict()
    expected[f"{LAYER}.weight"] = expected[f"{LAYER}.weight"] + 3 * tensors[B] @ tensors[A]
    expected["condition.table.weight"] = tensors["base_model.model.condition.table.weight"]
    assert_close(dict(model.state_dict()), expected)
    assert AiM.from_pretrained(folder / ADAPTER_FILE).fingerprint() == model.fingerprint()
    meta = AiM.from_pretrained(folder, device="meta")
    assert meta.config == model.config
    assert open_checkpoint(folder).parts == {"generator"}


def test_an_adapter_may_go_on_from_an_adapter(write, tmp_path):
    folder, tensors = write()
    (tmp_path / "first").mkdir()
    for path in folder.iterdir():
        path.rename(tmp_path / "first" / path.name)
    one = AiM.from_pretrained(tmp_path / "first").state_dict()
    two = AiM.from_pretrained(write(base_model_name_or_path=str(tmp_path / "first"))[0]).state_dict()
    name = f"{LAYER}.weight"
    assert_close(two[name], one[name] + 3 * tensors[B] @ tensors[A])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "IA3"}, "expected an adapter of peft_type 'LORA', got 'IA3'"),
        ({"use_dora": True}, "use_dora is set, and only plain LoRA can be merged here; merge it with peft"),
        ({"rank_pattern": {"in_proj": 3}}, "rank_pattern is set"),
        ({"bias": "all"}, "bias is 'all', expected 'none'"),
        ({"r": 0}, "expected a whole number r of at least 1 and a number lora_alpha below 1e.06, got 0 and 6"),
        (
            {"lora_alpha": "6"},
            "expected a whole number r of at least 1 and a number lora_alpha below 1e.06, got 2 and 6",
        ),
        ({"r": 1.5}, "got 1.5 and 6"),
        ({"r": 3}, "must hold floats of rank 3, as adapter_config.json says, got torch.float32 of rank 2"),
        ({"lora_alpha": 1e308}, r"got 2 and 1e\+308"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path must name the base model, got 'None'"),
        ({"base_model_name_or_path": "gone"}, "its base model cannot be read: gone: no such file"),
        ({"remove": [B]}, "in_proj.lora_A.weight does not fit the base model"),
        ({"remove": [A]}, "in_proj.lora_B.weight has no lora_A.weight beside it"),
        ({"more": {A: torch.ones(2, 17)}}, "in_proj.lora_A.weight does not fit the base model"),
        ({"more": {"base_model.model.blocks.9.x": torch.ones(2)}}, r"weights do not fit the model: 1 left over \(blo"),
        ({"metadata": {DIGEST: "0" * 64}}, "has other weights now than in training"),
    ],
)
def test_adapters_that_are_refused(write, options, message):
    folder, _ = write(**options)
    with one_line_error(CheckpointError, match=message):
        AiM.from_pretrained(folder)


def test_files_that_are_missing_or_damaged(write):
    folder, _ = write()
    with one_line_error(CheckpointError, match="holds one set of weights, so there is no 'ema' to choose"):
        open_checkpoint(folder, weights="ema").read("generator")
    (folder / ADAPTER_CONFIG_FILE).write_text("{")
    with one_line_error(CheckpointError, match=f"{ADAPTER_CONFIG_FILE}: not valid JSON"):
        AiM.from_pretrained(folder)
    (folder / ADAPTER_CONFIG_FILE).unlink()
    with one_line_error(CheckpointError, match=f"{ADAPTER_CONFIG_FILE}: missing; an adapter needs it beside"):
        AiM.from_pretrained(folder)
    write()
    (folder / "config.json").unlink()
    with one_line_error(CheckpointError, match=r"config.json: missing; a model folder needs it beside its weights"):
        AiM.from_pretrained(folder)


def test_a_layer_in_training_without_its_matrices():
    with one_line_error(CheckpointError, match="^x: its matrices of LoRA are missing"):
        merge_layers({"x.base_layer.weight": torch.ones(2, 2), "x.lora_A.default.weight": torch.ones(1, 2)}, 1.0)
