"""Translating official checkpoints: every key must be known, and an error is one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from aimamba.checkpoints.official import aim_from_official, vq_from_official
from aimamba.config import from_mapping
from aimamba.errors import CheckpointError
from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiM, AiMConfig, VQConfig, VQModel
from refusals import one_line_error

WORDS = "mamba.backbone.embeddings.word_embeddings.weight"
HEAD = "mamba.lm_head.weight"


@pytest.fixture(scope="module", params=["B", "L", "XL"])
def released(request, golden):
    """Preset name, official config and tensors of the released shapes that take no memory."""
    content = json.loads((golden / f"shapes_{request.param}.json").read_text())
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in content["state_dict"].items()}
    return f"aim-{request.param.lower()}", content["config"], tensors


@pytest.fixture
def adaln(golden):
    """Config and tensors of a small official checkpoint with its tokenizer inside."""
    folder = golden / "adaln"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@pytest.fixture
def group(golden):
    folder = golden / "group2"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def shapes(tensors):
    return {key: tuple(value.shape) for key, value in tensors.items()}


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: value.clone() for key, value in tensors.items()}, folder / "model.safetensors")
    return folder


def refusal(call, *arguments):
    """The one line that a call refuses with."""
    with one_line_error(CheckpointError) as caught:
        call(*arguments)
    return str(caught.value)


def test_released_generators_fill_the_presets(released):
    preset, config, tensors = released
    settings, renamed = aim_from_official(config, tensors)
    expected = AIM_PRESETS[preset]
    read = from_mapping(AiMConfig, settings, where="test")
    differing = {name for name in settings if getattr(read, name) != getattr(expected, name)}
    assert differing == {"decode_position_shift"}
    assert read == from_mapping(AiMConfig, {**expected.__dict__, "decode_position_shift": 1}, where="test")
    with torch.device("meta"):
        model = AiM(expected)
    assert shapes(renamed) == shapes(model.state_dict())
    official = {key: tensor for key, tensor in tensors.items() if key.startswith("mamba.") and key != HEAD}
    assert sum(t.numel() for t in renamed.values()) == sum(t.numel() for t in official.values())


def test_released_tokenizers_fill_the_preset(released):
    _, config, tensors = released
    settings, renamed = vq_from_official(config, tensors)
    assert from_mapping(VQConfig, settings, where="test") == VQ_PRESETS["vq-f16"]
    with torch.device("meta"):
        model = VQModel(VQ_PRESETS["vq-f16"])
    assert shapes(renamed) == shapes(model.state_dict())
    ignored = {"vqvae.quantize.codebook_used"}
    official = [key for key in tensors if key.startswith("vqvae.") and key not in ignored]
    assert len(official) == len(renamed)


def test_every_tensor_arrives_as_it_was(adaln, group):
    for config, tensors in (adaln, group):
        _, renamed = aim_from_official(config, tensors)
        _, tokenizer = vq_from_official(config, tensors) if "vqvae.quant_conv.bias" in tensors else (None, {})
        used = {key: value for key, value in tensors.items() if key != "vqvae.quantize.codebook_used"}
        theirs = sorted(float(value.double().sum()) for key, value in used.items() if "scale_shift_table" not in key)
        ours = (value for key, value in {**renamed, **tokenizer}.items() if key != "adaln.table")
        assert sorted(float(value.double().sum()) for value in ours) == theirs


def test_tables_of_a_group_are_stacked_in_order(group):
    config, tensors = group
    _, renamed = aim_from_official(config, tensors)
    for i in range(3):
        assert torch.equal(renamed["adaln.table"][i], tensors[f"mamba.backbone.layers.{i}.scale_shift_table"][0])


def test_a_tied_head_may_be_stored_or_not(adaln):
    config, tensors = adaln
    without = aim_from_official(config, tensors)[1]
    with_head = aim_from_official(config, tensors | {HEAD: tensors[WORDS].clone()})[1]
    assert with_head.keys() == without.keys()


def test_an_untied_head_is_refused(adaln):
    config, tensors = adaln
    message = refusal(aim_from_official, config, tensors | {HEAD: tensors[WORDS] + 1})
    assert HEAD in message
    assert "tied" in message


@pytest.mark.parametrize("nested", [False, True])
def test_llamagen_file(adaln, tmp_path, nested):
    _, tensors = adaln
    bare = {key.removeprefix("vqvae."): value for key, value in tensors.items() if key.startswith("vqvae.")}
    path = tmp_path / "vq_ds16_c2i.pt"
    torch.save({"model": bare} if nested else bare, path)
    model = VQModel.from_pretrained(path)
    expected = VQModel(model.config)
    expected.load_state_dict(vq_from_official(None, tensors)[1])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    assert not model.training


def test_generator_without_a_tokenizer(adaln, golden, tmp_path):
    config, tensors = adaln
    alone = {key: value for key, value in tensors.items() if key.startswith("mamba.")}
    folder = write(tmp_path / "alone", config, alone)
    both = AiM.from_pretrained(golden / "adaln")
    one = AiM.from_pretrained(folder)
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in both.state_dict().items())
    message = refusal(VQModel.from_pretrained, folder)
    assert "no tokenizer" in message
    assert str(folder) in message


def test_a_bare_file_of_weights_needs_no_config(golden, tmp_path):
    path = tmp_path / "official.safetensors"
    path.write_bytes((golden / "adaln" / "model.safetensors").read_bytes())
    assert AiM.from_pretrained(path).config == AiM.from_pretrained(golden / "adaln").config


def test_a_tokenizer_file_holds_no_generator(adaln, tmp_path):
    _, tensors = adaln
    path = tmp_path / "vq.pt"
    torch.save({key.removeprefix("vqvae."): value for key, value in tensors.items() if key.startswith("vqvae.")}, path)
    message = refusal(AiM.from_pretrained, path)
    assert "no generator" in message
    assert WORDS in message


@pytest.mark.parametrize(
    ("reader", "keys"),
    [
        (aim_from_official, ["mamba.backbone.layers.0.mlp.fc1.weight"]),
        (aim_from_official, [f"mamba.backbone.surprise.{i}" for i in range(5)]),
        (aim_from_official, ["optimizer.state"]),
        (vq_from_official, ["vqvae.encoder.conv_blocks.0.res.0.conv3.weight"]),
    ],
)
def test_unknown_keys_are_named(adaln, reader, keys):
    config, tensors = adaln
    message = refusal(reader, config, tensors | {key: torch.zeros(1) for key in keys})
    for key in keys[:3]:
        assert key.removeprefix("mamba.").removeprefix("vqvae.") in message
    assert ("and 2 more" in message) == (len(keys) == 5)


@pytest.mark.parametrize(
    ("model", "key", "named"),
    [
        (AiM, WORDS, WORDS),
        (AiM, "mamba.backbone.norm_f.weight", "norm.weight"),
        (AiM, "mamba.backbone.layers.1.mixer.A_log", "blocks.1.mixer.A_log"),
        (AiM, "mamba.backbone.layers.0.mixer.dt_bias", "blocks.0.mixer.dt_bias"),
        (AiM, "mamba.backbone.layers.2.adaLN_modulation.1.bias", "adaln.projections.2.bias"),
        (VQModel, "vqvae.quantize.embedding.weight", "codebook"),
        (VQModel, "vqvae.decoder.mid.1.q.bias", "decoder.middle.1.q.bias"),
        (VQModel, "vqvae.encoder.conv_out.weight", "encoder.head.weight"),
    ],
)
def test_a_missing_key_is_named(adaln, tmp_path, model, key, named):
    config, tensors = adaln
    del tensors[key]
    message = refusal(model.from_pretrained, write(tmp_path / "incomplete", config, tensors))
    assert named in message
    assert "missing" in message


@pytest.mark.parametrize(
    ("model", "key", "named"),
    [
        (AiM, "mamba.backbone.layers.1.mixer.in_proj.weight", "blocks.1.mixer.in_proj.weight"),
        (AiM, "mamba.backbone.final_layer.norm_final.weight", "final_norm.weight"),
        (VQModel, "vqvae.decoder.conv_in.weight", "decoder.stem.weight"),
    ],
)
def test_a_wrong_shape_is_named(adaln, tmp_path, model, key, named):
    config, tensors = adaln
    tensors[key] = tensors[key][1:]
    message = refusal(model.from_pretrained, write(tmp_path / "misshapen", config, tensors))
    assert named in message
    assert "shape" in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("d_intermediate", 128),
        ("attn_layer_idx", [1]),
        ("attn_cfg", {"num_heads": 4}),
        ("ssm_cfg", {"layer": "Mamba1"}),
        ("ssm_cfg", {}),
        ("ssm_cfg", {"layer": "Mamba2", "d_state": 64}),
        ("rms_norm", False),
        ("tie_embeddings", False),
        ("residual_in_fp32", False),
        ("surprise", 1),
        ("n_layer", 4),
        ("d_model", 128),
        ("num_classes", 1000),
        ("adaln_group", True),
    ],
)
def test_refused_options_are_named(adaln, tmp_path, option, value):
    config, tensors = adaln
    config[option] = value
    message = refusal(AiM.from_pretrained, write(tmp_path / "odd", config, tensors))
    assert repr(option).strip("'") in message
    assert str(tmp_path) in message


def test_options_of_the_mixer_that_the_official_trainer_lets_users_set(adaln, tmp_path):
    config, tensors = adaln
    expected = aim_from_official(config, tensors)[0]
    sizes = {"d_state": expected["state_size"], "headdim": expected["head_width"], "expand": expected["expand"]}
    others = {"d_conv": expected["conv_width"], "chunk_size": 128, "dt_min": 0.01, "ngroups": 1, "bias": False}
    config["ssm_cfg"] = {"layer": "Mamba2", **sizes, **others}
    assert aim_from_official(config, tensors)[0] == expected
    AiM.from_pretrained(write(tmp_path / "set", config, tensors))


@pytest.mark.parametrize(("option", "value"), [("ngroups", 2), ("D_has_hdim", True), ("d_ssm", 64), ("other", 1)])
def test_options_of_the_mixer_that_ours_does_not_have(adaln, option, value):
    config, tensors = adaln
    config["ssm_cfg"] = {"layer": "Mamba2", option: value}
    assert f"'ssm_cfg.{option}'" in refusal(aim_from_official, config, tensors)


def test_a_wrong_number_of_groups_is_refused(group):
    config, tensors = group
    assert "num_groups = 3" in refusal(aim_from_official, config | {"num_groups": 3}, tensors)
