"""The strict reader of JSON and TOML: hostile documents end in one line, and soon."""

import json
import os
import time

import pytest

from aimamba.documents import DocumentError, parse_json, parse_toml, read_json, read_toml
from aimamba.errors import AimambaError, ConfigError
from aimamba.models import AiM, AiMConfig, VQConfig, VQModel
from aimamba.train.recipe import load_recipe
from aimamba.train.tracking import read_metrics
from refusals import one_line_error

MANY = 100_000

JSON = {
    "brackets": ("[" * MANY, "nested more than 64 levels"),
    "braces": ('{"a":' * MANY, "nested more than 64 levels"),
    "balanced": ("[" * 10_000 + "]" * 10_000, "nested more than 64 levels"),
    "digits": ("9" * 5000, "more than 64 bits"),
    "digits of 10^400": ('{"a": 1' + "0" * 400 + "}", "more than 64 bits"),
    "2^64": (str(2**64), "more than 64 bits"),
    "a large float": ("1e400", "not finite"),
    "NaN": ('{"a": NaN}', "NaN is not a number in JSON"),
    "a name twice": ('{"a": 1, "a": 2}', "'a' appears twice"),
    "half a surrogate pair": (r'{"\ud800": 1}', "surrogate"),
    "escapes": ('"\\' * MANY, "Unterminated string"),
    "nothing": ("", "Expecting value"),
    "words": ("hello", "Expecting value"),
}

TOML = {
    "brackets": ("a = " + "[" * MANY, "nested more than 64 levels"),
    "inline tables": ("a = " + "{a = " * 10_000, "nested more than 64 levels"),
    "dots": ("a." * MANY + "a = 1", "a key of more than 16 parts"),
    "dots with spaces": ("a . " * MANY + "a = 1", "a key of more than 16 parts"),
    "quoted parts": ("'a'." * MANY + "a = 1", "a key of more than 16 parts"),
    "dots of a table": ("[" + "a." * MANY + "a]", "a key of more than 16 parts"),
    "digits": ("a = " + "9" * 5000, "5000 digits"),
    "digits of 10^400": ("a = 1" + "0" * 400, "more than 64 bits"),
    "hexadecimal digits": ("a = 0x" + "f" * 5000, "more than 64 bits"),
    "infinity": ("a = [1.0, -inf]", "not finite"),
    "NaN": ("a = nan", "not finite"),
    "escapes": ('a = "' + '\\"' * MANY, "string"),
    "an open text": ('a = """' + '\\"""' * MANY, "string"),
    "quotes": ('"\n' * MANY, "character"),
}


@pytest.mark.parametrize(
    ("parse", "text", "fault"),
    [
        *(pytest.param(parse_json, *case, id=f"JSON: {name}") for name, case in JSON.items()),
        *(pytest.param(parse_toml, *case, id=f"TOML: {name}") for name, case in TOML.items()),
    ],
)
def test_a_hostile_document_is_refused_soon(parse, text, fault):
    started = time.process_time()
    with one_line_error(DocumentError) as caught:
        parse(text)
    assert fault in str(caught.value)
    assert time.process_time() - started < 5


def test_brackets_and_dots_in_text_do_not_count():
    inside = "[{" * MANY + "a." * 50 + "b"
    assert parse_json(json.dumps({"a": inside + '"\\"'})) == {"a": inside + '"\\"'}
    quoted = [f"a = '{inside}'", f'a = "{inside}"', f"a = '''\n''{inside}'''", f'a = """{inside}""""']
    texts = [*quoted, f'"b" = 1 # {inside}']
    for text in texts:
        assert len(parse_toml(text)) == 1
    assert parse_toml('a.b."c.d".e = {f = [1]}') == {"a": {"b": {"c.d": {"e": {"f": [1]}}}}}


def test_numbers_of_64_bits_are_read():
    for number in (2**64 - 1, -(2**63), 1.7e308, 5e-324):
        assert parse_json(json.dumps([number])) == [number]


def test_files(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}, "a byte order mark, as editors on Windows write it"
    path.write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_toml(path) == {"a": 1}
    path.write_bytes(b"\xff")
    with pytest.raises(DocumentError, match="not UTF-8"):
        read_json(path)
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(DocumentError, match="104,857,600 bytes, more than"):
        read_json(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DocumentError, match="not a regular file"):
        read_json(path)


@pytest.mark.parametrize("content", [case[0] for case in JSON.values()], ids=[*JSON])
def test_hostile_files_of_a_model(make_aim, tmp_path, content):
    make_aim().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(content)
    with pytest.raises(AimambaError) as caught:
        AiM.from_pretrained(tmp_path / "model")
    assert "config.json: not valid JSON" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [case[0] for case in TOML.values()], ids=[*TOML])
def test_hostile_recipes(tmp_path, content):
    (tmp_path / "x.toml").write_text(content)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(str(tmp_path / "x.toml"))
    with pytest.raises(ConfigError, match="fit: lr must be float") as caught:
        load_recipe("avatars-tiny-vq", {"fit.lr": content.removeprefix("a = ")})
    assert len(str(caught.value)) < 500


def test_hostile_lines_of_metrics_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    hostile = [case[0] for case in JSON.values()] + ['{"step": "x", "split": "train"}', '{"step": 1, "split": []}']
    path.write_text("\n".join(["", *hostile, '{"step": 3, "split": "train"}', ""]))
    assert read_metrics(path) == [{"step": 3, "split": "train"}]


@pytest.mark.parametrize(
    ("cls", "changes", "fault"),
    [
        *((AiMConfig, {name: 10**18}, f"AiMConfig: {name} must be at most") for name in (
            "width", "num_blocks", "vocab_size", "num_tokens", "num_classes", "adaln_groups", "state_size",
            "head_width", "expand", "conv_width", "chunk_size",
        )),
        (AiMConfig, {"feed_forward": float("inf")}, "feed_forward must be above 0 and at most 64"),
        (AiMConfig, {"feed_forward": float("nan")}, "feed_forward must be above 0 and at most 64"),
        (AiMConfig, {"num_blocks": 10**6}, "num_blocks must be at most 1,024, got 1,000,000"),
        (AiMConfig, {"width": 2**16, "num_blocks": 1024}, "parameters, more than 20,000,000,000"),
        *((VQConfig, {name: 10**18}, f"VQConfig: {name} must be at most") for name in (
            "channels", "patch_size", "num_res_blocks", "z_channels", "codebook_size", "codebook_dim", "norm_groups",
        )),
        (VQConfig, {"channel_mult": (1,) * 10**5}, "channel_mult needs 1 to 12 levels"),
        (VQConfig, {"channel_mult": (1, 10**18)}, "channel_mult needs 1 to 12 levels"),
        (VQConfig, {"channel_mult": (256,) * 12, "channels": 16384}, "parameters, more than 20,000,000,000"),
        (VQConfig, {"commitment_weight": float("nan")}, "commitment_weight must be 0 or a positive number"),
    ],
)  # fmt: skip
def test_shapes_are_bounded_before_anything_is_allocated(cls, changes, fault):
    with pytest.raises(ConfigError) as caught:
        cls(**changes)
    assert fault in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_model_wider_than_memory_is_refused(make_vq, tmp_path):
    make_vq().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"z_channels": 10**9}))
    with pytest.raises(ConfigError, match="z_channels must be at most 16,384, got 1,000,000,000"):
        VQModel.from_pretrained(tmp_path)
