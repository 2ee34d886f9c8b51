"""``aimamba complete``, ``inpaint``, ``interpolate`` and ``score``."""

import json

import numpy as np
import pytest
from PIL import Image

from aimamba.data.png_text import read_png_text
from aimamba.generation import SamplingConfig
from aimamba.generation.record import parse_record

CONFIG = SamplingConfig(cfg_scale=2.0, seed=5)
DRAWING = ["-n", 2, "--seed", 5, "--cfg-scale", 2, "--device", "cpu"]


@pytest.fixture
def files(here, pipeline):
    """Two images of the model's size, and a mask of its middle token."""
    for name, image in zip("ab", pipeline(["planets", "cats, small"], 1, CONFIG), strict=True):
        image.save(here / f"{name}.png")
    mask = Image.new("L", (6, 6))
    mask.paste(255, (2, 2, 4, 4))
    mask.save(here / "mask.png")
    return here


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def record(path):
    return parse_record(read_png_text(path), path)


def test_completions(aimamba, models, pipeline, files):
    images = [Image.open(files / "a.png"), Image.open(files / "b.png")]
    status, out, _ = aimamba("complete", "a.png", "b.png", "--keep-rows", 2, "--model", models / "pipeline", *DRAWING)
    assert (status, out) == (0, "4 images in completions, on one sheet: completions/sheet.png\n")
    expected = pipeline.complete(images, 2, n=2, config=CONFIG)
    names = [f"{name}-seed{seed}.png" for name in "ab" for seed in (5, 6)]
    assert {path.name for path in (files / "completions").iterdir()} == {*names, "sheet.png"}
    for name, image in zip(names, expected, strict=True):
        assert np.array_equal(pixels(files / "completions" / name), np.asarray(image))
    found = record(files / "completions" / "b-seed6.png")
    assert (found.sampling.seed, found.sampling.cfg_scale) == (6, 2.0)
    assert (found.edit.command, found.edit.image, found.edit.keep_rows) == ("complete", "b.png", 2)
    assert len(found.edit.image_codes) == 64


def test_the_class_of_a_completion(aimamba, models, pipeline, files):
    command = ["complete", "a.png", "--keep-rows", 1, "--model", models / "pipeline", "--class", "sprouts", *DRAWING]
    assert aimamba(*command).status == 0
    [expected, _] = pipeline.complete(Image.open(files / "a.png"), 1, "sprouts", 2, CONFIG)
    assert np.array_equal(pixels(files / "completions" / "a-seed5.png"), np.asarray(expected))
    assert record(files / "completions" / "a-seed5.png").class_name == "sprouts"


def test_the_class_in_the_settings_of_a_png_comes_before_the_likeliest(aimamba, models, files):
    sample = ["sample", "--model", models / "pipeline", "--classes", "sprouts,Robots", "-n", 1, "--out", "made"]
    assert aimamba(*sample, "--device", "cpu").status == 0
    images = ["made/sprouts-seed0.png", "made/Robots-seed0.png", "a.png"]
    for command in (["complete", *images, "--keep-rows", 1], ["inpaint", *images, "--mask", "mask.png"]):
        assert aimamba(*command, "-n", 1, "--out", "out", "--model", models / "pipeline", "--device", "cpu").status == 0
        for name in ("sprouts", "Robots"):
            assert record(files / "out" / f"{name}-seed0-seed0.png").class_name == name


def test_inpaintings(aimamba, refusal, models, pipeline, files):
    command = ["inpaint", "a.png", "--mask", "mask.png", "--candidates", 3, "--model", models / "pipeline", *DRAWING]
    assert aimamba(*command).status == 0
    mask = Image.open(files / "mask.png")
    expected = pipeline.inpaint(Image.open(files / "a.png"), mask, n=2, config=CONFIG, candidates=3)
    for seed, image in zip((5, 6), expected, strict=True):
        assert np.array_equal(pixels(files / "inpaintings" / f"a-seed{seed}.png"), np.asarray(image))
    edit = record(files / "inpaintings" / "a-seed5.png").edit
    assert (edit.masked, edit.method, edit.candidates, edit.keep_pixels) == ((4,), "resample", 3, False)
    again = refusal("sample", "--like", "inpaintings/a-seed5.png")
    assert "was made by 'aimamba inpaint'" in again


def test_interpolations(aimamba, models, pipeline, files):
    command = ["interpolate", "planets", "4", "--steps", 3, "--model", models / "pipeline", *DRAWING]
    status, out, _ = aimamba(*command)
    assert (status, out) == (0, "6 images in interpolations, on one sheet: interpolations/sheet.png\n")
    for step, image in enumerate(pipeline.interpolate("planets", 4, 3, CONFIG)):
        name = f"planets-cats-small-seed5-step{step}.png"
        assert np.array_equal(pixels(files / "interpolations" / name), np.asarray(image))
    edit = record(files / "interpolations" / "planets-cats-small-seed6-step1.png").edit
    assert (edit.classes, edit.share, edit.path) == (("planets", "cats, small"), 0.5, "sphere")


def test_scores(aimamba, models, pipeline, files):
    for name in ("planets", "sprouts"):
        (files / "set" / name).mkdir(parents=True)
    Image.open(files / "a.png").save(files / "set" / "planets" / "a.png")
    Image.open(files / "b.png").save(files / "set" / "sprouts" / "b.png")
    options = ["--classify", "--json", "s.json", "--maps", "maps.png", "--model", models / "pipeline"]
    status, out, _ = aimamba("score", "set", *options, "--device", "cpu")
    assert status == 0
    images = [Image.open(files / "a.png"), Image.open(files / "b.png")]
    bits, likely = pipeline.score(images, [0, 1]).bits, pipeline.classify(images).argmax(dim=1).tolist()
    found = json.loads((files / "s.json").read_text())
    assert [each["bits"] for each in found["scores"]] == pytest.approx(bits.tolist())
    assert [each["likeliest_class"] for each in found["scores"]] == [pipeline.class_name(label) for label in likely]
    right = sum(label == wanted for label, wanted in zip(likely, (0, 1), strict=True))
    assert f"accuracy       {right / 2:.4f} ({right} of 2)" in out
    assert pixels(files / "maps.png").ndim == 3
    assert aimamba("score", "set", "--class", "Robots", "--model", models / "pipeline").status == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("complete a.png --keep-rows 3", "keep_rows must be from 0 to 2 of 3 rows, got 3"),
        ("complete nope.png --keep-rows 1", "nope.png: no such file"),
        ("complete wide.png --keep-rows 1", "wide.png: has 12 x 6 pixels, and the model's have 6 x 6"),
        ("complete a.png --keep-rows 1 --class dogs", "unknown class 'dogs'"),
        ("complete a.png --keep-rows 1 --min-p 1", "min-p must be in [0, 1)"),
        ("complete a.png --keep-rows 1 --negative cats", "--negative has no effect without guidance"),
        ("complete a.png --keep-rows 1 --negative x --cfg-scale 2", "unknown class 'x'"),
        ("complete a.png --keep-rows 1 -n 0", "-n must be at least 1, got 0"),
        ("inpaint a.png --mask wide.png", "--mask wide.png: a mask must be of pixels (6, 6)"),
        ("inpaint a.png --mask mask.png --method smart", "method must be one of resample, best, plain, got 'smart'"),
        ("inpaint a.png --mask mask.png --candidates 0", "--candidates must be at least 1, got 0"),
        ("interpolate planets dogs", "unknown class 'dogs'"),
        ("interpolate planets sprouts --steps 1", "steps must be from 2, for both ends"),
        ("interpolate planets sprouts -n 99999999999", "-n must be at most 1,000,000, got 99999999999"),
        ("interpolate planets sprouts -n 1001 --steps 1000", "-n 1001 makes 1,001,000 images, and at most 1,000,000"),
        ("complete a.png b.png --keep-rows 1 -n 500001", "-n 500001 makes 1,000,002 images, and at most 1,000,000"),
        ("complete sheet.png --keep-rows 1 --out .", "--out sheet.png: this is what the command reads"),
        (
            "complete a.png a-seed3.png --keep-rows 1 --seed 3 --out .",
            "--out a-seed3.png: this is what",
        ),
        ("inpaint a.png --mask sheet.png --out .", "--out sheet.png: this is what the command reads"),
        ("score . --maps maps.png --json maps.png", "--maps maps.png lies in a folder of images"),
        ("score a.png --maps a.png", "--maps a.png: this is what the command reads"),
        ("score a.png --maps maps.png --json ./maps.png", "--maps and --json name the same file"),
        ("interpolate planets sprouts --path bent", "path must be one of linear, sphere, got 'bent'"),
        ("score nope", "nope"),
        ("score . --class dogs", "unknown class 'dogs'"),
        ("score . --maps maps.jpg", "--maps maps.jpg: the name must end in .png"),
    ],
)
def test_refusals(refusal, models, files, words, named):
    Image.new("RGB", (12, 6)).save(files / "wide.png")
    assert named in refusal(*words.split(), "--model", models / "pipeline")
    assert not [path for path in files.iterdir() if path.is_dir()]
