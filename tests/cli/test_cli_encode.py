"""``aimamba encode``, and a generator that trains on what it wrote."""

import json
import shutil

import pytest

from aimamba.pipeline import Pipeline

REFUSALS = {
    "TOK nowhere --out codes": ["nowhere: no such file, folder or named set"],
    "TOK photos --out photos/codes": ["--out photos/codes lies in a folder of images that the command reads"],
    "TOK photos --out codes --size 18": ["--size must be a multiple of 4, the tokenizer's downsampling; got 18"],
    "TOK photos --out codes --size 0": ["--size", "got 0"],
    "TOK photos --out codes --size 24": ["24 x 20 pixels", "at least 24"],
    "TOK photos --out codes --views all": ["views must be one of center, center-flip, ten-crop, moved-N, got 'all'"],
    "TOK photos --out photos/cats/0.png --size 16": ["is a file"],
    "nothing photos --out codes": ["nothing: no such file or folder"],
    "TOK photos": ["--out"],
}


@pytest.fixture
def tokenizer(trained):
    return trained / "runs" / "vq"


@pytest.mark.parametrize("command", REFUSALS)
def test_bad_input_gets_one_line_and_no_files_are_written(command, refusal, tokenizer, photos, here):
    words = [str(tokenizer) if word == "TOK" else word for word in command.split()]
    line = refusal("encode", *words)
    for part in REFUSALS[command]:
        assert part in line
    assert not (here / "codes").exists()


def test_both_splits_are_written_and_a_second_run_changes_nothing(aimamba, tokenizer, photos, here):
    command = ["encode", tokenizer, "photos", "--out", "codes", "--size", 16, "--views", "ten-crop"]
    status, out, _ = aimamba(*command)
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["codes/train", "codes/held-out"]
    train, held_out = (
        json.loads((here / "codes" / split / "meta.json").read_text()) for split in ("train", "held-out")
    )
    assert train["pictures"] + held_out["pictures"] == 16
    assert (len(train["views"]), len(held_out["views"])) == (20, 1)
    assert train["class_names"] == ["cats", "dogs"]
    before = {path: path.read_bytes() for path in (here / "codes").rglob("*") if path.is_file()}
    assert aimamba(*command)[0] == 0
    assert {path: path.read_bytes() for path in (here / "codes").rglob("*") if path.is_file()} == before


def test_a_generator_trains_on_codes_without_the_images(aimamba, refusal, trained, tokenizer, photos, here, models):
    assert aimamba("encode", tokenizer, "photos", "--out", "codes", "--size", 16, "--views", "center-flip")[0] == 0
    rows = [{"file_name": f"{path.parent.name}/{path.name}", "text": f"a {path.parent.name[:-1]}"}
            for path in sorted(photos.rglob("*.png"))]  # fmt: skip
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, _ = aimamba("encode", tokenizer, "photos", "--out", "codes", "--size", 16, "--views", "center-flip")
    assert status == 0
    assert [line.endswith(" codes, with captions") for line in out.splitlines()] == [True, True]
    assert set((here / "codes" / "train" / "captions.jsonl").read_text().splitlines()) == {'["a cat"]', '["a dog"]'}
    shutil.rmtree(photos)
    train = ["train", trained / "aim.toml", "--data", "codes", "--out", "run", "--device", "cpu", "--tokenizer"]
    line = refusal(*train, models / "tokenizer")
    assert "codes were written by another tokenizer" in line
    assert aimamba(*train, tokenizer)[0] == 0
    assert Pipeline.from_pretrained(here / "run").class_names == ("cats", "dogs")
    shard = here / "codes" / "train" / "codes-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    shutil.rmtree(here / "run")
    assert "missing or cut short" in refusal(*train, tokenizer)
