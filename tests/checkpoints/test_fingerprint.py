"""Fingerprints of models, which are stored beside codes and in the results of studies: they must never change."""

import pytest

from aimamba.data.shards import fingerprint as codes_fingerprint
from aimamba.models import AiM, VQModel


@pytest.mark.parametrize(
    ("model", "name", "digest"),
    [
        (VQModel, "avatars-64", "f25c237dacfc5809fc902d672fc093350216431f195be74061df115cfef107ef"),
        (AiM, "avatars-64", "5341f6e6b1b55753cf1202008bec3309a2e7b01be275b814f4592147a044ea35"),
        (AiM, "emoji-64", "137c0ef120ccc1ad3da00b02e6b43d80af6436840241f23618a079c79c294fdb"),
    ],
)
def test_packaged_models(model, name, digest):
    assert model.from_pretrained(name).fingerprint() == digest


def test_what_decides_the_codes_of_the_packaged_tokenizer():
    digest = "8900f1039df126e2c789200e334c71417900adceee95690b4522c66a4e93b00f"
    assert codes_fingerprint(VQModel.from_pretrained("avatars-64")) == digest


def test_equal_models_have_equal_fingerprints(make_aim):
    assert make_aim().fingerprint() == make_aim().fingerprint()
    assert len({model.fingerprint() for model in (make_aim(), make_aim(seed=1), make_aim(chunk_size=2))}) == 3
