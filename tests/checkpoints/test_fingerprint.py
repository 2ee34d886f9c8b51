"""Fingerprints of models, which are stored beside codes and in the results of studies: they must never change."""

import pytest

from aimamba.data.shards import fingerprint as codes_fingerprint
from aimamba.models import AiM, VQModel


@pytest.mark.parametrize(
    ("model", "name", "digest"),
    [
        (VQModel, "avatars-64", "222cfc4ebb34d21da78f3bffe9fa83d30972224187034b680314dd4b8e3fb052"),
        (AiM, "avatars-64", "52a94cdabaf313ee549d9c43531c98f8f9a5a2803fda021ba581802cf88b8284"),
        (AiM, "emoji-64", "137c0ef120ccc1ad3da00b02e6b43d80af6436840241f23618a079c79c294fdb"),
    ],
)
def test_packaged_models(model, name, digest):
    assert model.from_pretrained(name).fingerprint() == digest


def test_what_decides_the_codes_of_the_packaged_tokenizer():
    digest = "23972eb07d20007e19bbe6a91f2f2b36185bb1238257e08ec8e39948d409b242"
    assert codes_fingerprint(VQModel.from_pretrained("avatars-64")) == digest


def test_equal_models_have_equal_fingerprints(make_aim):
    assert make_aim().fingerprint() == make_aim().fingerprint()
    assert len({model.fingerprint() for model in (make_aim(), make_aim(seed=1), make_aim(chunk_size=2))}) == 3
