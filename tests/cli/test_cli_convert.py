"""``aimamba convert``."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from aimamba.models import AiM, VQModel
from aimamba.pipeline import Pipeline


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_an_official_checkpoint_with_its_tokenizer(aimamba, golden, here, images):
    status, out, err = aimamba("convert", golden / "adaln", "--out", "new/folder")
    assert (status, err) == (0, "")
    assert out == "pipeline of 64 px and 10 classes written to new/folder\n"
    assert sorted(path.name for path in (here / "new/folder").iterdir()) == [
        "generator", "pipeline.json", "tokenizer",
    ]  # fmt: skip
    official, ours = Pipeline.from_pretrained(golden / "adaln"), Pipeline.from_pretrained("new/folder")
    codes = official.tokenizer.encode(images)
    assert torch.equal(ours.tokenizer.encode(images), codes)
    assert torch.equal(ours.tokenizer.decode(codes), official.tokenizer.decode(codes))
    labels = torch.tensor([0, 9])
    assert torch.equal(
        ours.generator(codes.flatten(1)[:, :-1], labels), official.generator(codes.flatten(1)[:, :-1], labels)
    )
    assert aimamba("sample", "--model", "new/folder", "--classes", "1", "-n", 1).status == 0


@pytest.mark.parametrize("nested", [True, False])
def test_llamagens_tokenizer(aimamba, golden, here, images, nested):
    tensors = load_file(golden / "adaln" / "model.safetensors")
    tensors = {key.removeprefix("vqvae."): value for key, value in tensors.items() if key.startswith("vqvae.")}
    torch.save({"model": tensors} if nested else tensors, "vq_ds16_c2i.pt")
    assert aimamba("convert", "vq_ds16_c2i.pt", "--out", "vq").out == "tokenizer written to vq\n"
    expected = VQModel.from_pretrained(golden / "adaln").encode(images)
    assert torch.equal(VQModel.from_pretrained("vq").encode(images), expected)
    assert aimamba("info", "vq").out.startswith("tokenizer")


def test_a_generator_alone_and_with_a_tokenizer(aimamba, golden, make_vq, here):
    assert "--tokenizer would make it a pipeline" in aimamba("convert", golden / "group2", "--out", "alone").out
    assert torch.equal(
        AiM.from_pretrained("alone").word_embedding.weight, AiM.from_pretrained(golden / "group2").word_embedding.weight
    )
    make_vq(codebook_size=512).save_pretrained("vq")
    status, out, _ = aimamba("convert", golden / "group2", "--tokenizer", "vq", "--out", "both")
    assert (status, out) == (0, "pipeline of 8 px and 10 classes written to both\n")
    assert aimamba("sample", "--model", "both", "-n", 1).status == 0


def test_our_own_models_in_another_dtype(aimamba, models, here):
    assert aimamba("convert", models / "pipeline", "--out", "half", "--dtype", "bfloat16").status == 0
    for part, key, dtype in (
        ("generator", "word_embedding.weight", torch.bfloat16),
        ("tokenizer", "decoder.stem.weight", torch.bfloat16),
        ("tokenizer", "encoder.stem.weight", torch.float32),
        ("tokenizer", "codebook", torch.float32),
    ):
        assert load_file(here / "half" / part / "model.safetensors")[key].dtype == dtype
    assert Pipeline.from_pretrained("half").class_names == Pipeline.from_pretrained(models / "pipeline").class_names


def test_refusals(refusal, models, golden, make_vq, here):
    make_vq(codebook_size=7).save_pretrained("vq")
    (here / "file").touch()
    for arguments, said in (
        ([models / "pipeline", "--out", "vq"], "--out vq is not empty"),
        ([models / "pipeline", "--out", "file"], "is a file"),
        ([models / "pipeline", "--out", "new", "--dtype", "int4"], "dtype 'int4' is unknown"),
        ([golden / "group2", "--out", "new", "--tokenizer", "vq"], "512 codes against 7"),
        ([golden / "group2", "--out", "new", "--tokenizer", "nowhere"], "nowhere: no such file or folder"),
    ):
        assert said in refusal("convert", *arguments)
        assert not (here / "new").exists()


def test_the_weights_of_a_pickle_are_chosen(aimamba, golden, here):
    tensors = load_file(golden / "adaln" / "model.safetensors")
    right = {key.removeprefix("vqvae."): value for key, value in tensors.items() if key.startswith("vqvae.")}
    torch.save({"ema": {key: value + 1 for key, value in right.items()}, "model": right}, "vq.pt")
    assert aimamba("convert", "vq.pt", "--weights", "model", "--out", "vq").status == 0
    codebook = VQModel.from_pretrained("vq").codebook
    assert torch.equal(codebook, VQModel.from_pretrained(golden / "adaln").codebook)


def test_a_killed_conversion_leaves_nothing_that_loads(aimamba, models, here, monkeypatch):
    """Whenever it ends, the folder is whole or absent: it gets its name last."""
    seen = []
    save = VQModel.save_pretrained

    def watched(model, folder, **options):
        save(model, folder, **options)
        seen.append((folder, (here / "new").exists()))

    for model in (VQModel, AiM):
        monkeypatch.setattr(model, "save_pretrained", watched)
    assert aimamba("convert", models / "pipeline", "--out", "new").status == 0
    assert [exists for _, exists in seen] == [False, False]
    assert (here / "new" / "pipeline.json").is_file()
    assert [path.name for path in here.iterdir()] == ["new"]


def test_a_folder_that_another_process_fills_meanwhile_stays(models, here, refusal, monkeypatch):
    save = VQModel.save_pretrained

    def overtaken(model, folder, **options):
        (here / "new").mkdir()
        (here / "new/theirs").touch()
        save(model, folder, **options)

    monkeypatch.setattr(VQModel, "save_pretrained", overtaken)
    message = refusal("convert", models / "pipeline", "--out", "new")
    assert "--out new: another process has written there meanwhile; give a new one" in message
    assert [path.name for path in here.rglob("*")] == ["new", "theirs"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux")
def test_a_folder_whose_name_is_not_utf8(aimamba, models, here):
    folder = "caf\udce9"
    assert aimamba("convert", models / "pipeline", "--out", f"{folder}/model").status == 0
    assert "generator" in aimamba("info", f"{folder}/model").out
    status, _, err = aimamba("sample", "--model", f"{folder}/model", "-n", 1, "--out", f"{folder}/drawn")
    assert (status, len(list((here / folder / "drawn").glob("*-seed0.png")))) == (0, 5), err
    settings = json.loads((here / folder / "drawn/settings.json").read_text(encoding="utf-8"))
    assert settings["model"] == "caf\\udce9/model"
