"""Planned memory against the peak of real steps, each in a process of its own."""

import sys

import pytest

from aimamba.train.plan.outline import outline
from benchmarks.memory import CPU_CASES, CUDA_CASES, compare

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

SHOWN = ("generator 384 x 4, 8 images", "tokenizer, features, discriminator, 4 images of 64")


@pytest.mark.parametrize("name", SHOWN)
def test_a_plan_is_within_fifteen_percent_of_the_peak(name):
    found = compare(name, "cpu")
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.parametrize("case", [*CPU_CASES.values(), *CUDA_CASES.values()], ids=[*CPU_CASES, *CUDA_CASES])
def test_every_case_is_a_recipe(case):
    assert outline(case.recipe()).parameters > 0
