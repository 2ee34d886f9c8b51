"""``aimamba evaluate``: interrupted commands go on, sets are merged and saved, broken images are left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimamba.data import files, image_files
from aimamba.data.files import open_image
from aimamba.data.image_files import ImageFiles
from aimamba.evaluation.metrics import Metrics, Recognition
from aimamba.evaluation.neighbours import KnnAccuracy
from aimamba.evaluation.summary import summary
from aimamba.pipeline import Pipeline

MODEL = ["evaluate", "--model", "model", "--reference", "real.npz", "-n", 11, "--batch-size", 3, "--device", "cpu"]
MODEL += ["--json", "found.json"]


@pytest.fixture
def model(make_aim, make_vq, here, monkeypatch, light, generated):
    """A model of two classes at 8 pixels, a reference, and the batches that were generated."""
    monkeypatch.setenv("AIMAMBA_CACHE", str(here / "cache"))
    Pipeline(make_vq(), make_aim(num_classes=2, num_tokens=16), ("a", "b")).save_pretrained(here / "model")
    np.savez(here / "real.npz", arr_0=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    return generated


def numbers():
    return json.loads(Path("found.json").read_text())


def test_an_interrupted_evaluation_goes_on(aimamba, model, here):
    assert aimamba(*MODEL, "--sweep", "2").status == 0
    whole = numbers()
    assert not list(Path("cache/samples").glob("*")), "nothing stays of a finished one"
    assert sum(model) == 22
    model.clear()
    model.stop_at = 6  # in the sweep
    answer = aimamba(*MODEL, "--sweep", "2")
    assert answer.status == 130
    assert "the same command goes on" in answer.err
    model.clear()
    model.stop_at = None
    assert aimamba(*MODEL, "--sweep", "2").status == 0
    assert sum(model) == 5
    assert numbers() == whole
    assert not list(Path("cache/samples").glob("*"))
    model.clear()
    assert aimamba(*MODEL, "--temperature", 0.5).status == 0
    assert sum(model) == 11


def test_an_evaluation_without_a_cache_works(aimamba, model, here):
    (here / "cache").write_text("a file is in the way")
    assert aimamba(*MODEL).status == 0


def test_samples_are_saved_as_sample_saves_them(aimamba, model, here):
    assert aimamba(*MODEL, "--save-npz", "saved.npz").status == 0
    whole = numbers()
    assert sum(model) == 11
    aimamba("sample", "--model", "model", "--npz", "other.npz", "-n", 11, "--batch-size", 3, "--device", "cpu")
    assert Path("saved.npz").read_bytes() == Path("other.npz").read_bytes()
    assert aimamba("evaluate", "saved.npz", *MODEL[3:5], *MODEL[-2:]).status == 0
    assert numbers()["lite0"]["frechet"] == pytest.approx(whole["lite0"]["frechet"])


@pytest.mark.filterwarnings("default")
def test_several_sets_are_measured_as_one(aimamba, refusal, model, here):
    images = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    for name, some in (("a", slice(0, 7)), ("b", slice(7, 12)), ("whole", slice(0, 12))):
        np.savez(f"{name}.npz", arr_0=images[some], arr_1=labels[some])
    np.savez("large.npz", arr_0=np.zeros((3, 9, 9, 3), np.uint8))
    rest = ["--reference", "real.npz", "--json", "found.json"]
    assert aimamba("evaluate", "whole.npz", *rest).status == 0
    whole = numbers()
    assert aimamba("evaluate", "a.npz", "b.npz", *rest, "--save-npz", "merged.npz").status == 0
    assert numbers()["lite0"] == whole["lite0"]
    assert numbers()["settings"]["samples"] == {"name": "a.npz + b.npz", "count": 12, "size": 8}
    with np.load("merged.npz") as content:
        assert np.array_equal(content["arr_0"], images)
        assert np.array_equal(content["arr_1"], labels)
    assert "a.npz is given twice" in refusal("evaluate", "a.npz", "a.npz", *rest)
    assert "give sets of one size" in refusal("evaluate", "a.npz", "large.npz", *rest)
    assert "this is what the command reads" in refusal("evaluate", "a.npz", "b.npz", *rest, "--save-npz", "b.npz")
    assert "must end in .npz" in refusal("evaluate", "a.npz", *rest, "--save-npz", "b.zip")
    answer = aimamba("evaluate", "a.npz", "whole.npz", *rest)
    assert answer.status == 0
    assert "a.npz and whole.npz begin with the same image" in answer.err


@pytest.fixture
def broken(photos):
    """Photos of which one JPEG and one PNG are cut short, and one has a wrong byte in the middle."""
    for number, suffix in ((0, "jpg"), (1, "png"), (2, "png")):
        path = photos / "cats" / f"large-{number}.{suffix}"
        Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        content = path.read_bytes()
        half = len(content) // 2
        path.write_bytes(content[:half] if number < 2 else content[:half] + b"????" + content[half + 4 :])
    return photos


def test_a_broken_image_is_found_first_or_left_out(aimamba, refusal, broken, here, light):
    np.savez("s.npz", arr_0=np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8))
    command = ["evaluate", "s.npz", "--reference", "photos", "--json", "found.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFiles, "batches", lambda *_: pytest.fail("began to measure"))
        assert "large-0.jpg" in refusal(*command)
        (broken / "cats" / "large-0.jpg").unlink()
        message = refusal(*command)
    assert "large-1.png" in message
    assert message.endswith("; --skip-broken leaves such files out")
    answer = aimamba(*command, "--skip-broken")
    assert answer.status == 0, answer.err
    assert "left out of photos" in answer.out
    assert "2 files that cannot be read" in answer.out
    about = numbers()["settings"]["reference"]
    assert (about["count"], about["broken"]) == (16, 2)
    assert "large-1.png" in about["broken_files"][0]


def test_a_tokenizer_on_broken_images(aimamba, refusal, broken, make_vq, here, light):
    make_vq().save_pretrained("vq")
    command = ["evaluate-tokenizer", "vq", "photos", "--size", 16, "--json", "found.json"]
    assert "--skip-broken leaves such files out" in refusal(*command)
    assert aimamba(*command, "--skip-broken").status == 0
    assert numbers()["settings"]["pictures"]["broken"] == 3


def test_folders_of_nothing_but_broken_images(aimamba, here):
    (here / "photos").mkdir()
    (here / "photos" / "a.png").write_bytes(b"?")
    command = ["evaluate", "photos", "--reference", "photos", "--skip-broken"]
    answer = aimamba(*command)
    assert answer.status == 2
    assert "none of its 1 images can be read" in answer.err


def test_an_image_with_bytes_behind_its_end_is_not_broken(photos):
    for path in (photos / "cats" / "0.png", photos / "cats" / "1.jpg"):
        Image.new("RGB", (24, 20)).save(path)
        path.write_bytes(path.read_bytes() + bytes(10_000))
    assert len(ImageFiles(photos, size=16)) == 17


def test_very_large_jpegs_are_decoded_smaller(tmp_path, monkeypatch):
    Image.new("RGB", (160, 120), "red").save(tmp_path / "a.jpg")
    monkeypatch.setattr(files, "_HUGE", 1000)
    assert open_image(tmp_path / "a.jpg").size == (160, 120)
    assert open_image(tmp_path / "a.jpg", least=20).size == (40, 30)
    assert open_image(tmp_path / "a.jpg", least=119).size == (160, 120)
    assert image_files.ImageFiles(tmp_path, size=20).image(0).shape == (20, 20, 3)


def test_images_too_large_to_measure(refusal, here):
    np.savez("large.npz", arr_0=np.zeros((2, 2049, 2049, 3), np.uint8))
    assert "images of 2049 pixels a side are too large" in refusal(
        "evaluate", "large.npz", "--reference", "large.npz", "--train", "none"
    )


def test_small_sets_say_so_beside_each_number():
    accuracy = KnnAccuracy(0.5, 0.6, {"a": 0.5})
    found = {"frechet": 1.0, "kid": 0.1, "kid_std": 0.01, "kid_subset_size": 50, "precision": 0.5, "recall": 0.5}
    found |= {"inception_score": 3.0, "recognition": Recognition(samples=accuracy, reference=accuracy)}
    lines = dict(summary("lite0", Metrics(**found, counts=(10_000, 300))))
    assert lines.pop("lite0 Inception score") == "3.00"
    by_class = lines.pop("lite0 5-NN accuracy, unanimous, by class", None)
    assert by_class is None
    assert all("(few images: 300, needs " in text for text in lines.values())
    assert Metrics(**found, counts=(10_000, 300)).to_dict()["few_images"]["recall"] == {"images": 300, "enough": 2048}
    assert "few_images" not in Metrics(**found, counts=(10_000, 10_000)).to_dict()
    assert "few_images" not in Metrics(**found, counts=(None, None)).to_dict()
    assert Metrics(**found, counts=(3000, None)).few_images == {"inception_score": (3000, 5000)}
