"""The protocol of the paper's numbers."""

from dataclasses import replace

import numpy as np
import pytest

from aimamba.errors import ConfigError, DataError
from aimamba.evaluation.protocol import IMAGES, LABELS, aim_paper, check_paper_reference
from aimamba.evaluation.sources import open_source
from aimamba.generation import SamplingConfig
from aimamba.models import AIM_PRESETS, AiMConfig


def official(name):
    return replace(AIM_PRESETS[name], decode_position_shift=1)


@pytest.mark.parametrize(("name", "scale"), [("aim-b", 2.0), ("aim-l", 1.75), ("aim-xl", 1.75)])
def test_the_published_guidance(name, scale):
    assert (IMAGES, LABELS) == (50_000, "random")
    config = SamplingConfig(seed=4)
    assert aim_paper(config, official(name)) == SamplingConfig(cfg_scale=scale, seed=4)
    assert aim_paper(replace(config, cfg_scale=scale), official(name)).cfg_scale == scale
    with pytest.raises(ConfigError, match=f"fixes guidance {scale} for {name}, got 3.0"):
        aim_paper(replace(config, cfg_scale=3.0), official(name))


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"top_k": 5}, official("aim-b"), "without top-k or top-p"),
        ({"temperature": 0.9}, official("aim-b"), "temperature 1"),
        ({"cfg_schedule": "linear"}, official("aim-b"), "constant guidance"),
        ({}, AIM_PRESETS["aim-b"], "needs decode_position_shift 1, .* this model has 0"),
        ({}, official("aim-1b"), "give --cfg-scale"),
    ],
)
def test_refusals(settings, shape, message):
    with pytest.raises(ConfigError, match=message):
        aim_paper(SamplingConfig(**settings), shape)


def test_a_model_of_another_size_needs_a_guidance_scale():
    shape = AiMConfig(width=64, num_blocks=2, decode_position_shift=1)
    assert aim_paper(SamplingConfig(cfg_scale=1.5), shape).cfg_scale == 1.5


@pytest.mark.parametrize("missing", ["arr_0", "mu", "sigma_s"])
def test_an_incomplete_reference_is_refused(tmp_path, pixels, missing):
    parts = {"arr_0": pixels(3), "mu": np.zeros(4), "sigma": np.eye(4), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "whole.npz", **parts)
    check_paper_reference(open_source(str(tmp_path / "whole.npz")))
    np.savez(tmp_path / "part.npz", **{key: value for key, value in parts.items() if key != missing})
    with pytest.raises(DataError, match="aim-paper needs images and Inception's statistics"):
        check_paper_reference(open_source(str(tmp_path / "part.npz")))
