"""A generator knows the tokenizer whose codes it was trained on, and refuses another."""

import json

import pytest
import torch

from aimamba import Pipeline
from aimamba.data.shards import fingerprint
from aimamba.errors import ConfigError
from aimamba.models import AiM, VQModel
from aimamba.pipeline import open_tokenizer
from tests.refusals import one_line_error


@pytest.fixture
def saved(make_aim, make_vq, tmp_path):
    Pipeline(make_vq(), make_aim()).save_pretrained(tmp_path / "saved")
    make_vq(seed=1).save_pretrained(tmp_path / "other")
    return tmp_path / "saved"


def test_another_tokenizer_is_refused_unless_told(saved, make_vq):
    other = saved.parent / "other"
    with one_line_error(ConfigError, "would decode noise") as caught:
        Pipeline.from_pretrained(saved, tokenizer=other)
    for tokenizer in (make_vq(), make_vq(seed=1)):
        assert tokenizer.code_fingerprint()[:12] in str(caught.value)
    Pipeline.from_pretrained(saved, tokenizer=other, foreign_tokenizer=True)
    generator = AiM.from_pretrained(saved)
    with one_line_error(ConfigError, "--foreign-tokenizer"):
        Pipeline(make_vq(seed=1), generator)
    Pipeline(make_vq(), generator)


@torch.no_grad()
def test_a_better_decoder_is_the_same_tokenizer(saved, make_vq):
    tokenizer = make_vq()
    next(iter(tokenizer.decoder.parameters())).add_(1)
    Pipeline(tokenizer, AiM.from_pretrained(saved))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_fingerprint_is_of_the_weights_as_saved(saved, tmp_path, make_vq, dtype):
    loaded = Pipeline.from_pretrained(saved, dtype=dtype)
    assert loaded.tokenizer.code_fingerprint() == fingerprint(make_vq())
    assert loaded.tokenizer.float().code_fingerprint() == fingerprint(make_vq())
    with one_line_error(ConfigError, "would decode noise"):
        Pipeline.from_pretrained(saved, tokenizer=saved.parent / "other", dtype=dtype)
    narrow = Pipeline.from_pretrained(saved, dtype=dtype)
    narrow.save_pretrained(tmp_path / "narrow")
    again = Pipeline.from_pretrained(tmp_path / "narrow", dtype=dtype)
    assert again.generator.config.tokenizer == again.tokenizer.code_fingerprint()


@torch.no_grad()
def test_weights_that_change_after_loading_have_their_own_fingerprint(saved):
    tokenizer = VQModel.from_pretrained(saved, dtype=torch.bfloat16)
    before = tokenizer.code_fingerprint()
    tokenizer.codebook.mul_(2)
    assert tokenizer.code_fingerprint() != before


def test_a_generator_keeps_the_name_of_its_own_tokenizer(saved, tmp_path):
    foreign = Pipeline.from_pretrained(saved, tokenizer=saved.parent / "other", foreign_tokenizer=True)
    foreign.save_pretrained(tmp_path / "mixed")
    with one_line_error(ConfigError, "would decode noise"):
        Pipeline.from_pretrained(tmp_path / "mixed")
    with one_line_error(ConfigError, "would decode noise"):
        open_tokenizer(tmp_path / "mixed")
    assert isinstance(open_tokenizer(tmp_path / "mixed", foreign=True), VQModel)


def test_folders_of_earlier_versions_load(saved):
    path = saved / "generator" / "config.json"
    config = json.loads(path.read_text())
    assert len(config.pop("tokenizer")) == 64
    path.write_text(json.dumps(config))
    (saved / "pipeline.json").unlink()
    assert Pipeline.from_pretrained(saved, tokenizer=saved.parent / "other").generator.config.tokenizer is None


def test_the_generators_own_fingerprint_does_not_change_with_it(saved, make_aim):
    assert AiM.from_pretrained(saved).fingerprint() == make_aim().fingerprint()


@pytest.mark.parametrize("value", ["", "0" * 63, "G" * 64, "../" * 30])
def test_what_is_no_fingerprint(make_aim, value):
    with one_line_error(ConfigError, "tokenizer must be a fingerprint of 64 hex digits"):
        make_aim(tokenizer=value)


def test_a_model_on_the_meta_device_has_no_weights_to_compare(saved):
    assert Pipeline.from_pretrained(saved, tokenizer=saved.parent / "other", device="meta").image_size == 6
