"""Settings of sampling and guidance schedules."""

import math

import pytest

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from refusals import one_line_error


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.01}, "top-p"),
        ({"top_p": math.nan}, "top-p"),
        ({"min_p": 1.0}, "min-p"),
        ({"min_p": -0.1}, "min-p"),
        ({"temperature_end": -1.0}, "temperature-end"),
        ({"cfg_start": 0.5, "cfg_end": 0.5}, "cfg-start and cfg-end"),
        ({"cfg_end": 1.5}, "cfg-start and cfg-end"),
        ({"cfg_scale": -1.0}, "cfg-scale"),
        ({"cfg_scale": math.inf}, "cfg-scale"),
        ({"cfg_power": 0.0}, "cfg-power"),
        ({"cfg_power": math.nan}, "cfg-power"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 63}, "seed"),
    ],
)
def test_what_cannot_be_is_refused(settings, named):
    with one_line_error(ConfigError, match=named) as caught:
        SamplingConfig(**settings)
    assert str(next(iter(settings.values()))) in str(caught.value)


def test_the_edges_are_allowed():
    SamplingConfig(temperature=0.0, top_k=0, top_p=1.0, cfg_scale=0.0, seed=0)
    SamplingConfig(top_p=1e-9, seed=(1 << 63) - 1)


def test_constant_guidance():
    config = SamplingConfig(cfg_scale=3.0)
    assert [config.guidance_at(t, 4) for t in range(4)] == [3.0] * 4


def test_linear_guidance_rises_from_one_to_the_scale():
    config = SamplingConfig(cfg_scale=3.0, cfg_schedule="linear")
    assert [config.guidance_at(t, 5) for t in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_power_cosine_guidance():
    """1 + (scale - 1) (1 - cos(pi t^power)) / 2 by hand at t = 0, 1/4, 1/2, 3/4, 1."""
    plain = SamplingConfig(cfg_scale=3.0, cfg_schedule="power-cosine")
    half = math.sqrt(0.5)
    assert [plain.guidance_at(t, 5) for t in range(5)] == pytest.approx([1, 2 - half, 2, 2 + half, 3])
    squared = SamplingConfig(cfg_scale=3.0, cfg_schedule="power-cosine", cfg_power=2.0)
    assert squared.guidance_at(2, 5) == pytest.approx(2 - half)
    late = SamplingConfig(cfg_scale=3.0, cfg_schedule="power-cosine", cfg_power=4.0)
    assert all(late.guidance_at(t, 5) < plain.guidance_at(t, 5) for t in (1, 2, 3))


@pytest.mark.parametrize("schedule", ["linear", "power-cosine"])
def test_a_scale_of_one_is_one_throughout(schedule):
    config = SamplingConfig(cfg_schedule=schedule)
    assert {config.guidance_at(t, 7) for t in range(7)} == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "linear", "power-cosine"])
def test_a_single_code_has_a_finite_scale(schedule):
    assert math.isfinite(SamplingConfig(cfg_scale=2.0, cfg_schedule=schedule).guidance_at(0, 1))


def test_settings_in_words():
    assert SamplingConfig().describe() == "guidance 1, seed 0"
    every = {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "cfg_scale": 1.5, "cfg_schedule": "linear", "seed": 7}
    assert SamplingConfig(**every).describe() == "guidance 1.5 linear, temperature 0.8, top-k 5, top-p 0.9, seed 7"
