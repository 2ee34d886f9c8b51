"""Memory and speed of sampling."""

import time

import pytest
import torch

from aimamba.generation import SamplingConfig
from aimamba.models import AiMConfig
from aimamba.pipeline import Pipeline
from aimamba.studies import speed
from aimamba.studies.settings import SpeedConfig
from aimamba.studies.speed import guidance_speed, sampling_speed, state_bytes

SHAPE = {"width": 16, "num_blocks": 2, "vocab_size": 8, "num_tokens": 9, "num_classes": 2, "state_size": 4}


def test_the_state_of_mamba_does_not_grow_and_the_cache_of_attention_does():
    def sizes(**settings):
        return [state_bytes(AiMConfig(**{**SHAPE, "head_width": 8, "num_tokens": n, **settings})) for n in (9, 64)]

    window, state = 3 * (32 + 2 * 4), 4 * 8 * 4  # taps before the present one; heads x features x state
    assert sizes() == [2 * 4 * (window + state)] * 2
    assert sizes(mixer="attention") == [4 * 2 * 16 * (n + 1) for n in (9, 64)], "class token and codes, one layer"


def test_speed(monkeypatch):
    monkeypatch.setattr(speed, "_LONG_ENOUGH", 1e-9)
    config = AiMConfig(**SHAPE, head_width=8)
    found = sampling_speed(config, SpeedConfig(tokens=(4, 9), batches=(1, 3)), torch.device("cpu"))
    assert [(line["tokens"], line["batch"]) for line in found] == [(4, 1), (4, 3), (9, 1), (9, 3)]
    assert all(line["pictures_per_second"] > 0 and line["state_bytes"] > 0 for line in found)


@pytest.mark.parametrize(
    ("device", "threads", "clock"),
    [("cpu", 1, time.process_time), ("cpu", 2, time.perf_counter), ("meta", 1, time.perf_counter)],
)
def test_one_thread_on_a_cpu_is_timed_by_its_processor_time(monkeypatch, device, threads, clock):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert speed._clock(torch.device(device)) is clock


def test_a_guided_image_costs_a_second_row_until_guidance_ends(monkeypatch, make_vq, make_aim):
    monkeypatch.setattr(speed, "_ROUNDS", 1)
    pipeline = Pipeline(make_vq(channel_mult=(1, 1, 2)), make_aim(num_tokens=16))
    settings = [{}, {"cfg_scale": 2.0}, {"cfg_scale": 2.0, "cfg_end": 0.5}, {"cfg_scale": 2.0, "cfg_start": 0.25}]
    found = guidance_speed(pipeline, [SamplingConfig(**each) for each in settings], 2)
    assert [line["rows"] for line in found] == pytest.approx([1, 2, 1.5, 2])
    assert [line["sampling"]["cfg_end"] for line in found] == [1, 1, 0.5, 1]
    assert all(line["pictures_per_second"] > 0 for line in found)
