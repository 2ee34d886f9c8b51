"""``aimamba info``, and damaged checkpoints in every command that reads one."""

import re
import shutil

import pytest

from aimamba.pipeline import Pipeline


def test_a_pipeline(aimamba, models, pipeline):
    status, out, err = aimamba("info", models / "pipeline")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "pipeline    6 x 6 pixels, 3 x 3 codes"
    assert lines[1] == f"generator   {pipeline.generator.num_parameters():,} parameters"
    assert "width 16" in lines[2]
    assert "mixer mamba2" in lines[2]
    assert lines[3] == f"tokenizer   {pipeline.tokenizer.num_parameters():,} parameters"
    assert "codebook_size 24" in lines[4]
    assert lines[5] == "classes     planets, sprouts, Robots, sea shells, cats, small"


def test_many_classes(aimamba, make_aim, make_vq):
    Pipeline(make_vq(), make_aim(num_classes=1000)).save_pretrained("imagenet")
    (last,) = [line for line in aimamba("info", "imagenet").out.splitlines() if line.startswith("classes")]
    assert last.startswith("classes     class-0, class-1, ")
    assert last.endswith("class-19, ... (1000 in all)")


def test_all_classes(aimamba, refusal, models):
    assert aimamba("info", models / "pipeline", "--classes").out.splitlines() == [
        "0  planets", "1  sprouts", "2  Robots", "3  sea shells", "4  cats, small",
    ]  # fmt: skip
    assert aimamba("info", models / "generator", "--classes").out.splitlines()[4] == "4  class-4"
    assert "a tokenizer has no classes" in refusal("info", models / "tokenizer", "--classes")


def test_imagenets_classes_have_their_synsets(aimamba):
    lines = aimamba("info", "aim-b", "--classes").out.splitlines()
    assert len(lines) == 1000
    assert lines[0] == "  0  n01440764  tench"
    assert lines[388] == "388  n02510455  giant panda"
    assert lines[999] == "999  n15075141  toilet tissue"


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_part_alone(aimamba, models, part, file):
    status, out, _ = aimamba("info", models / part / file)
    assert status == 0
    assert out.startswith(f"{part}   ")
    assert len(out.splitlines()) == 2


def test_runs(aimamba, trained):
    assert aimamba("info", trained / "runs" / "vq").out.startswith("tokenizer")
    out = aimamba("info", trained / "runs" / "aim").out
    assert out.startswith("pipeline    16 x 16 pixels, 4 x 4 codes\n")
    assert out.endswith("classes     planets, sprouts\n")


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("aim-b", 147_622_080),
        ("aim-l", 349_760_000),
        ("aim-xl", 763_291_392),
        ("aim-1b", 1_335_944_192),
        ("vq-f16", 71_883_403),
    ],
)
def test_presets(aimamba, preset, count):
    assert f" {count:,} parameters" in aimamba("info", preset).out


def test_official_checkpoints(aimamba, golden):
    out = aimamba("info", golden / "adaln").out
    assert re.findall(r"^(\w+) ", out, re.M) == ["pipeline", "generator", "tokenizer", "classes"]
    assert "64 x 64 pixels" in out
    assert re.findall(r"^(\w+) ", aimamba("info", golden / "group2").out, re.M) == ["generator"]


def test_an_unknown_preset(refusal):
    message = refusal("info", "aim-xxl")
    assert "aim-xxl: no such file or folder" in message
    assert "did you mean 'aim-xl'" in message


COMMANDS = {
    "info": ["info"],
    "sample": ["sample", "--model"],
    "reconstruct": ["reconstruct", "photos", "--model"],
    "convert": ["convert", "--out", "new"],
}


@pytest.mark.parametrize("preset", ["aim-b", "vq-f16"])
@pytest.mark.parametrize("command", ["sample", "reconstruct", "convert"])
def test_a_preset_is_not_a_model(refusal, photos, command, preset):
    assert f"{preset}: this is a preset, a shape without weights" in refusal(*COMMANDS[command], preset)


@pytest.mark.parametrize("command", COMMANDS)
class TestDamage:
    @pytest.fixture
    def folder(self, models, here, photos):
        shutil.copytree(models / "pipeline", here / "damaged")
        return here / "damaged"

    @pytest.fixture
    def refused(self, refusal, command, folder, here):
        def refused(model=folder):
            message = refusal(*COMMANDS[command], model)
            assert not any((here / name).exists() for name in ("samples", "reconstructions", "new"))
            return message

        return refused

    def test_nothing_there(self, refused):
        assert "nowhere: no such file or folder" in refused("nowhere")
        assert "no/such/folder: no such file or folder" in refused("no/such/folder")

    def test_an_empty_folder(self, refused, here):
        (here / "empty").mkdir()
        assert "empty: no model.safetensors" in refused("empty")

    @pytest.mark.parametrize("size", [0, 4, 100, 5000])
    @pytest.mark.parametrize("part", ["generator", "tokenizer"])
    def test_weights_cut_short(self, refused, folder, part, size):
        weights = folder / part / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:size])
        message = refused()
        assert str(weights) in message
        assert f"{size:,} bytes" in message

    @pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
    def test_a_file_of_something_else(self, refused, here, name):
        (here / name).write_bytes(b"\x89 no weights at all")
        assert f"{name}: cannot be read" in refused(name)

    def test_a_file_of_an_unknown_kind(self, refused, photos):
        assert "expected a .safetensors, .pt, .pth or .bin file" in refused(photos / "cats" / "0.png")

    @pytest.mark.parametrize("content", ["", "{", "[]"])
    def test_a_damaged_config(self, refused, folder, content):
        (folder / "tokenizer" / "config.json").write_text(content)
        assert "tokenizer/config.json: " in refused()

    def test_a_missing_config(self, refused, folder):
        (folder / "tokenizer" / "config.json").unlink()
        assert "config.json: missing" in refused()

    def test_weights_of_another_model(self, refused, here):
        import torch
        from safetensors.torch import save_file

        (here / "other").mkdir()
        (here / "other" / "config.json").write_text("{}")
        save_file({"x": torch.ones(2)}, here / "other" / "model.safetensors")
        assert "other: holds neither a generator nor a tokenizer" in refused("other")


def test_verify_compares_all_weights_with_their_sums(aimamba, models, here):
    status, out, _ = aimamba("info", models, "--verify")
    assert status == 0
    assert "verified    generator: its weights are as saved" in out
    assert "verified    tokenizer: its weights are as saved" in out
    folder = here / "copy"
    shutil.copytree(models, folder)
    weights = folder / "tokenizer" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert aimamba("info", folder).status == 0
    status, _, err = aimamba("info", folder, "--verify")
    assert status == 2
    assert "tokenizer/model.safetensors: damaged, or not what was saved" in err
