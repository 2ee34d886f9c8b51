"""``aimamba sample``: interrupted commands go on, and samples say how they were drawn."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aimamba.data.image_files import choose_files
from aimamba.pipeline import Pipeline

SETTINGS = ["--cfg-scale", 2.5, "--top-k", 9, "--temperature", 0.9, "--seed", 3]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def interrupted(aimamba, generated, after, *command):
    generated.clear()
    generated.stop_at = after
    assert aimamba(*command).status == 130
    generated.stop_at = None
    generated.clear()


def test_a_folder_goes_on_where_it_was(aimamba, models, here, generated):
    command = ["sample", "--model", models / "pipeline", "-n", 4, "--batch-size", 3, *SETTINGS, "--out"]
    assert aimamba(*command, "whole").status == 0
    interrupted(aimamba, generated, 4, *command, "parts")
    assert len(list(Path("parts").glob("*-seed*.png"))) == 12
    answer = aimamba(*command, "parts")
    assert answer.out == "20 images in parts (12 were there), on one sheet: parts/sheet.png\n"
    assert sum(generated) == 8
    assert contents("parts") == contents("whole")


def test_a_batch_that_was_cut_in_two_is_generated_as_it_was(aimamba, models, generated):
    command = ["sample", "--model", models / "pipeline", "-n", 4, "--batch-size", 6, "--out", "parts"]
    assert aimamba(*command).status == 0
    whole = contents("parts")
    for name in ("Robots-seed1.png", "Robots-seed2.png"):  # the end of a batch of six
        Path("parts", name).unlink()
    generated.clear()
    assert aimamba(*command).out.startswith("20 images in parts (18 were there)")
    assert generated == [6]
    assert contents("parts") == whole


def test_more_images_cost_only_themselves(aimamba, models, generated):
    command = ["sample", "--model", models / "pipeline", "--batch-size", 6, "--out", "parts"]
    assert aimamba(*command, "-n", 2).status == 0
    generated.clear()
    assert aimamba(*command, "-n", 4).out.startswith("20 images in parts (10 were there)")
    assert sum(generated) == 10


def test_what_has_other_settings_or_is_damaged_is_drawn_again(aimamba, models, here, generated):
    command = ["sample", "--model", models / "pipeline", "-n", 2, "--classes", "0,1", "--out", "samples"]
    assert aimamba(*command, *SETTINGS).status == 0
    before = contents("samples")
    for name in ("planets-seed3.png", "planets-seed4.png"):
        content = Path("samples", name).read_bytes()
        Path("samples", name).write_bytes(content[: len(content) - 30])
    Image.new("RGB", (6, 6)).save("samples/sprouts-seed3.png")
    generated.clear()
    assert aimamba(*command, *SETTINGS, "--batch-size", 1).status == 0
    assert sum(generated) == 3
    assert contents("samples") == before
    generated.clear()
    assert aimamba(*command, "--cfg-scale", 2.4, *SETTINGS[2:]).status == 0
    assert sum(generated) == 4
    assert contents("samples")["planets-seed3.png"] != before["planets-seed3.png"]


def test_settings_beside_and_inside_the_images(aimamba, models, pipeline):
    aimamba("sample", "--model", models / "pipeline", "-n", 2, "--classes", "sea shells,planets", *SETTINGS)
    kept = json.loads(Path("samples/settings.json").read_text())
    assert kept["fingerprint"] == pipeline.fingerprint()
    assert kept["model"] == str(models / "pipeline")
    assert kept["sampling"]["top_k"] == 9
    assert kept["images"][1] == {"file": "sea-shells-seed4.png", "class": "sea shells", "label": 3, "seed": 4}
    assert len(kept["images"]) == 4
    aimamba("sample", "--model", models / "pipeline", "-n", 1, "--classes", "planets,sprouts", *SETTINGS)
    later = json.loads(Path("samples/settings.json").read_text())
    assert [image["file"] for image in later["images"]] == ["planets-seed3.png", "sprouts-seed3.png"]
    [earlier] = later["earlier"]
    rest = ["sea-shells-seed3.png", "sea-shells-seed4.png", "planets-seed4.png"]
    assert [image["file"] for image in earlier["images"]] == rest
    assert earlier | {"images": 0} == kept | {"images": 0}
    with Image.open("samples/sea-shells-seed4.png") as image:
        record = json.loads(image.info["aimamba"])
    assert (record["class_name"], record["label"], record["sampling"]["seed"]) == ("sea shells", 3, 4)
    assert record["sampling"]["cfg_scale"] == 2.5
    assert record["model"]["fingerprint"] == pipeline.fingerprint()


def test_like_draws_the_same_bytes(aimamba, models):
    aimamba("sample", "--model", models / "pipeline", "-n", 2, "--dtype", "bfloat16", *SETTINGS)
    for name in ("planets-seed4.png", "cats-small-seed3.png"):
        answer = aimamba("sample", "--like", f"samples/{name}", "--out", "again")
        assert answer.out == f"samples/{name} drawn again: again/{name}\n"
        assert Path("again", name).read_bytes() == Path("samples", name).read_bytes()
    assert len(list(Path("again").iterdir())) == 2
    copy = Path("elsewhere")
    Pipeline.from_pretrained(models / "pipeline").save_pretrained(copy)
    aimamba("sample", "--like", "samples/planets-seed3.png", "--model", copy, "--out", "moved")
    assert Path("moved/planets-seed3.png").read_bytes() == Path("samples/planets-seed3.png").read_bytes()


def test_like_refuses_another_model(aimamba, refusal, models, make_aim, make_vq, pipeline):
    aimamba("sample", "--model", models / "pipeline", "-n", 1, "--classes", 0)
    other = Pipeline(make_vq(), make_aim(seed=1))
    other.save_pretrained("other")
    message = refusal("sample", "--like", "samples/planets-seed0.png", "--model", "other")
    assert "was drawn by another model" in message
    assert pipeline.fingerprint()[:12] in message
    assert other.fingerprint()[:12] in message


@pytest.mark.parametrize(
    "option",
    ["--seed 1", "-n 2", "--classes 0", "--npz a.npz", "--cfg-scale 3", "--dtype float16", "--top-k 2"],
)
def test_like_takes_no_settings(refusal, option):
    assert f"leave {option.split()[0]} out" in refusal("sample", "--like", "a.png", *option.split())


def hostile(text=None, *, raw=None):
    """Write a PNG with a text, or with raw chunks before its pixels."""
    info = PngInfo()
    if text is not None:
        info.add_text("aimamba", text)
    Image.new("RGB", (6, 6)).save("hostile.png", pnginfo=info)
    if raw is not None:
        content = Path("hostile.png").read_bytes()
        Path("hostile.png").write_bytes(content[:33] + raw + content[33:])


def chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


RECORD = {
    "class_name": "planets",
    "label": 0,
    "sampling": {"seed": 1},
    "model": {
        "model": "pipeline",
        "fingerprint": "0" * 64,
        "dtype": "float32",
        "engine": "plain",
        "device": "cpu",
        "aimamba": "0",
    },
}


NESTED = {
    "label": [-1, "0", True, 1.5, 2**63],
    "class_name": [3],
    "more": [1],
    "sampling": [{"seed": -1}, {"top_p": 5}, [], {"seed": 2**70}, {"temperature": "hot"}, {"unknown": 1}],
    "model": ["pipeline", RECORD["model"] | {"fingerprint": "x"}, {"model": "pipeline"}],
}
TEXTS = [
    *("", "{", "[]", "3", "NaN", '{"label": 1, "label": 2}', json.dumps({"sheet": "a title"})),
    *("[" * 10_000, '{"a": ' * 10_000, "9" * 5000, "x" * 70_000),
    *(json.dumps(RECORD | {key: value}) for key, values in NESTED.items() for value in values),
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12])
def test_hostile_text(refusal, here, text):
    hostile(text)
    assert "hostile.png: " in refusal("sample", "--like", "hostile.png")


@pytest.mark.parametrize(
    "raw",
    [
        chunk(b"zTXt", b"aimamba\0\0" + zlib.compress(b"[" * 50_000_000, 9)),
        chunk(b"iTXt", b"aimamba\0\1\0\0\0" + zlib.compress(b" " * 50_000_000, 9)),
        chunk(b"tEXt", b"aimamba\0" + b"x" * 20_000_000),
        chunk(b"zTXt", b"aimamba\0\0" + b"not zlib"),
        chunk(b"iTXt", b"aimamba"),
        b"\xff\xff\xff\x7ftEXtaimamba",
    ],
    ids=["bomb", "bomb-itxt", "long", "no-zlib", "short", "endless"],
)
def test_hostile_chunks(refusal, here, raw):
    hostile(raw=raw)
    assert "hostile.png: " in refusal("sample", "--like", "hostile.png")


def test_files_that_are_no_samples(refusal, here, models):
    os.mkfifo("pipe")
    Path("empty.png").touch()
    Image.new("RGB", (6, 6)).save("plain.png")
    Image.new("RGB", (6, 6)).save("photo.jpg")
    for name in ("missing.png", "pipe", "empty.png", "plain.png", "photo.jpg", "."):
        assert "aimamba sample" in refusal("sample", "--like", name)


def test_an_image_starts_no_download_and_fits_its_model(refusal, here, models, pipeline, monkeypatch):
    monkeypatch.setattr("aimamba.checkpoints.hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    for change in ({"model": "someone/else"}, {"model": str(models / "generator"), "tokenizer": "someone/else"}):
        hostile(json.dumps(RECORD | {"model": RECORD["model"] | change}))
        assert "not on this machine under that name" in refusal("sample", "--like", "hostile.png")
    known = {"model": str(models / "pipeline"), "fingerprint": pipeline.fingerprint()}
    hostile(json.dumps(RECORD | {"label": 77, "model": RECORD["model"] | known}))
    assert "its class is number 77, and the model has 5" in refusal("sample", "--like", "hostile.png")


NPZ = ["--npz", "s.npz", "-n", 17, "--batch-size", 4, *SETTINGS]


def test_an_npz_goes_on_where_it_was(aimamba, refusal, models, here, generated):
    command = ["sample", "--model", models / "pipeline", *NPZ]
    assert aimamba(*command).status == 0
    whole = Path("s.npz").read_bytes()
    Path("s.npz").unlink()
    interrupted(aimamba, generated, 3, *command)
    assert not Path("s.npz").exists()
    assert Path("s.npz.parts").is_dir()
    assert "holds unfinished samples with sampling.top_k 9, now it is 8" in refusal(*command, "--top-k", 8)
    assert "labels" in refusal(*command, "--labels", "random")
    answer = aimamba(*command)
    assert "12 of 17 samples are there" in answer.err
    assert sum(generated) == 5
    assert Path("s.npz").read_bytes() == whole
    assert sorted(path.name for path in here.iterdir()) == ["s.npz", "s.settings.json"]
    settings = json.loads(Path("s.settings.json").read_text())
    assert (settings["labels"], settings["n"], settings["sampling"]["top_k"]) == ("balanced", 17, 9)


def test_damaged_parts_are_generated_again(aimamba, models, here, generated):
    command = ["sample", "--model", models / "pipeline", *NPZ]
    assert aimamba(*command).status == 0
    whole = Path("s.npz").read_bytes()
    Path("s.npz").unlink()
    interrupted(aimamba, generated, 4, *command)
    one, two, three, _ = sorted(Path("s.npz.parts").glob("codes-*.npy"))
    one.write_bytes(one.read_bytes()[:-1] + b"\1")
    two.write_bytes(b"")
    three.rename(three.with_name("codes-0000000008-0123456789abcdef.npy"))
    Path("s.npz.parts/codes-x.npy").write_bytes(b"?")
    assert aimamba(*command).status == 0
    assert sum(generated) == 13
    assert Path("s.npz").read_bytes() == whole


@pytest.mark.parametrize("content", ["{", "[]", "[" * 10_000, "\0"])
def test_damaged_settings_of_parts(refusal, models, here, content):
    Path("s.npz.parts").mkdir()
    Path("s.npz.parts/settings.json").write_text(content)
    assert "remove s.npz.parts to begin again" in refusal("sample", "--model", models / "pipeline", *NPZ)


def test_a_second_process_is_refused(refusal, models, here):
    from aimamba.train.lock import locked

    with locked(here / "s.npz.parts"):
        assert "another process is sampling the same" in refusal("sample", "--model", models / "pipeline", *NPZ)


def test_kill_loses_one_batch_at_most(aimamba, models, here, generated):
    command = ["sample", "--model", str(models / "pipeline"), *map(str, NPZ), "--device", "cpu"]
    killed = (
        "import os, sys; from aimamba import cli; from aimamba.pipeline import core\n"
        "made = []; generate = core.generate\n"
        "def kill(*a, **k):\n"
        "    made.append(0)\n"
        "    if len(made) == 4: os.kill(os.getpid(), 9)\n"
        "    return generate(*a, **k)\n"
        "core.generate = kill; cli.main(sys.argv[1:])"
    )
    assert subprocess.run([sys.executable, "-c", killed, *command], check=False, capture_output=True).returncode == -9
    assert aimamba(*command).status == 0
    assert sum(generated) == 5
    with np.load("s.npz") as content:
        parts = content["arr_0"]
    assert aimamba(*command[:3], *NPZ[2:], "--npz", "whole.npz").status == 0
    with np.load("whole.npz") as content:
        assert np.array_equal(content["arr_0"], parts)


def test_many_classes_make_pages(aimamba, make_aim, make_vq, here, monkeypatch):
    names = [f"class {i}" for i in range(40)]
    Pipeline(make_vq(), make_aim(num_classes=40, num_tokens=1), names).save_pretrained("many")
    monkeypatch.setattr("aimamba.data.sheets._LONGEST_SIDE", 1200)
    command = ["sample", "--model", "many", "--classes", ",".join(map(str, range(40))), "-n", 1, "--batch-size", 40]
    assert aimamba(*command).status == 0
    pages = sorted(path.name for path in Path("samples").glob("sheet*.png"))
    assert pages == ["sheet-page-2.png", "sheet-page-3.png", "sheet.png"]
    for name in pages:
        with Image.open(Path("samples", name)) as image:
            assert max(image.size) < 1300
    assert len(choose_files(Path("samples"))) == 40
    assert aimamba(*command[:4], 3, *command[5:]).status == 0
    assert [path.name for path in Path("samples").glob("sheet*.png")] == ["sheet.png"]
