"""The request of a study: its defaults, and models that do not fit the kind of study."""

from pathlib import Path

import pytest

from aimamba.errors import ConfigError
from aimamba.studies.recipe import load_study
from aimamba.studies.run import StudyRequest


def request(kind, **values):
    return StudyRequest(name=kind, study=load_study(kind), out=Path("out"), **values)


def test_defaults():
    scaling, guidance = request("scaling"), request("guidance", model="m", budget=8)
    assert (scaling.samples_one_model, scaling.source, scaling.images) == (False, "avatars-64", scaling.study.budget)
    assert (guidance.samples_one_model, guidance.source, guidance.images) == (True, "m", 8)
    assert request("ablation", tokenizer="t").source == "t"
    assert request("guidance-free").samples_one_model


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("scaling", {"budget": 0}, "--budget must be at least 1 image, got 0"),
        ("guidance", {"budget": 3}, "--budget must be at least 4 images, got 3"),
        ("scaling", {"budget": 10**400}, "--budget must be at most 1,000,000,000,000 images; give fewer"),
        ("scaling", {"model": "m"}, "study scaling trains its models: give their tokenizer with --tokenizer"),
        ("guidance", {"tokenizer": "t"}, "study guidance samples a whole model: give it with --model"),
        ("guidance-free", {"tokenizer": "t"}, "study guidance-free samples a whole model: give it with --model"),
    ],
)
def test_refusals(kind, values, message):
    with pytest.raises(ConfigError, match=message):
        request(kind, **values)
