"""``aimamba evaluate-tokenizer``."""

import json

import pytest

from aimamba.data import sets


@pytest.fixture(autouse=True)
def few_avatars(monkeypatch):
    monkeypatch.setattr(sets, "STYLES", ("planets", "thumbs"))


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
