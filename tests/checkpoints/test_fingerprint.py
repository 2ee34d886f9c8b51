"""Fingerprints of models, which are stored beside codes and in the results of studies: they must never change."""

import pytest

from aimamba.data.shards import fingerprint as codes_fingerprint
from aimamba.models import AiM, VQModel


@pytest.mark.parametrize(
    ("model", "name", "digest"),
    [
        (VQModel, "avatars-64", "620c19fa01d584fcd346daa310c2543aad6c35101e4a7c0ac381e59a18bcbad2"),
        (AiM, "avatars-64", "3c03948b7df34cc9682b57e2806c63e8959cc4769b827aa2d826ec60d0a87be1"),
        (AiM, "emoji-64", "403325ce78dec97100e196b304762a69fa204b1da1c13a02c993ec26dfe2bb46"),
    ],
)
def test_packaged_models(model, name, digest):
    assert model.from_pretrained(name).fingerprint() == digest


def test_what_decides_the_codes_of_the_packaged_tokenizer():
    digest = "88851b1d465195d18be4e81d422e133c16871e60747d0eb6ac1278dd1286eb84"
    assert codes_fingerprint(VQModel.from_pretrained("avatars-64")) == digest


def test_equal_models_have_equal_fingerprints(make_aim):
    assert make_aim().fingerprint() == make_aim().fingerprint()
    assert len({model.fingerprint() for model in (make_aim(), make_aim(seed=1), make_aim(chunk_size=2))}) == 3
