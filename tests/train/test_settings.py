"""The limits of the settings of the training loop."""

import math

import pytest
from toy_task import settings

from aimamba.errors import ConfigError


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": math.inf}, {"betas": (0.9, 1.0)}, {"warmup_steps": -1},
        {"ema_decay": 1.0}, {"ema_decay": -0.1}, {"final_lr_fraction": 1.5}, {"accumulation": 3}, {"accumulation": 0},
        {"clip_norm": -1.0}, {"log_every": 0}, {"betas": (-0.1, 0.9)}, {"seed": -1}, {"seed": 2**64},
        {"weight_decay": -0.1}, {"evaluate_every": -1}, {"sheet_every": -1}, {"checkpoint_every": -1},
        {"checkpoints": 0}, {"patience": -1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=rf"fit\.{next(iter(wrong))} must"):
        settings(**wrong)


def test_the_limits_themselves_are_in_range():
    settings(betas=(0.0, 0.0), warmup_steps=0, ema_decay=0.0, clip_norm=0.0, seed=0, weight_decay=0.0, log_every=1)
    settings(final_lr_fraction=0.0, accumulation=4, evaluate_every=0, sheet_every=0, checkpoint_every=0)
    settings(final_lr_fraction=1.0, steps=1, batch_size=1)
