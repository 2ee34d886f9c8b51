"""Lower bounds of the benchmarks, against counts by hand."""

import json
from dataclasses import asdict

import pytest
import torch

from aimamba.models import AIM_PRESETS, AiM, AiMConfig
from benchmarks.floors import (
    Memory,
    Work,
    attention_mixing,
    sampling_bytes,
    sampling_floor,
    sampling_operations,
    ssd_mixing,
    training_bytes,
    training_floor,
    training_operations,
)
from benchmarks.ours import attention_of_same_size, count_work

CEILINGS = {"bytes_per_second": 1e9, "operations_per_second": {"float32": 1e10}}


def test_work_of_aim_b_by_hand():
    with torch.device("meta"):
        work = count_work(AiM(AIM_PRESETS["aim-b"]))
    in_proj, out_proj = 768 * (2 * 1536 + 2 * 128 + 24), 1536 * 768
    assert work.matrices == 16384 * 768 + 24 * (in_proj + out_proj)
    assert work.once == 24 * 768 * 3 * 768 + 768 * 2 * 768
    assert work.mixing == 24 * (2 * 64 * (128 + 1536) + 4 * 1536 * 128)
    state, dual = work.memories
    window = 24 * 4 * 3 * (1536 + 256)
    assert state == Memory(state_bytes=24 * 4 * 24 * 64 * 128 + window, state_operations=24 * 5 * 24 * 64 * 128)
    assert dual == Memory(
        state_bytes=window,
        cache_bytes=24 * 4 * (1536 + 128 + 24),
        cache_operations=24 * (2 * (1536 + 128) + 3 * 24),
    )


def test_the_dual_form_counts_while_it_is_smaller():
    with torch.device("meta"):
        work = count_work(AiM(AIM_PRESETS["aim-b"]))
    state, dual = work.memories
    assert work.memory(128.5) == dual  # an image of 256 codes on average
    assert work.memory(1024) == state


def test_work_of_the_attention_baseline_by_hand():
    config = AiMConfig(width=64, num_blocks=4, head_width=16, vocab_size=100, mixer="attention", feed_forward=2.0)
    work = count_work(AiM(config))
    assert work.matrices == 100 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert work.memories == (Memory(cache_bytes=4 * 2 * 2 * 64, cache_operations=2 * 2 * 2 * 64),)  # keys and values
    assert work.mixing == 2 * attention_mixing(width=64, tokens=256)


def test_the_work_of_bfloat16_keeps_the_state_wide():
    config = AiMConfig(width=32, num_blocks=1, vocab_size=16, state_size=8, head_width=16)
    wide, narrow = count_work(AiM(config)), count_work(AiM(config).cast(torch.bfloat16))
    window = 3 * (64 + 2 * 8)
    assert wide.memories[0].state_bytes - narrow.memories[0].state_bytes == 2 * window
    assert wide.memories[1].cache_bytes - narrow.memories[1].cache_bytes == 2 * (64 + 8)
    assert wide.matrices == narrow.matrices


@pytest.mark.parametrize("size", ["aim-b", "aim-l"])
def test_the_attention_baseline_has_as_many_parameters(size):
    with torch.device("meta"):
        ours, baseline = (
            AiM(config).num_parameters() for config in (AIM_PRESETS[size], attention_of_same_size(AIM_PRESETS[size]))
        )
    assert abs(ours - baseline) / ours < 0.002


def test_bytes_and_operations_of_a_token_by_hand():
    memory = Memory(state_bytes=50, state_operations=60, cache_bytes=8, cache_operations=12)
    work = Work(matrices=1000, once=400, memories=(memory,))
    # Four tokens: 1000 + 400 / 4 numbers of 2 bytes; a row reads and writes its state, reads 2.5 places, writes one.
    assert sampling_bytes(work, "bfloat16", rows=3, tokens=4) == 2 * 1100 + 3 * (2 * 50 + 8 * 2.5 + 8)
    assert sampling_bytes(work, "int8", rows=3, tokens=4, seen=5) == 1100 + 3 * (2 * 50 + 8 * 5 + 8)
    assert sampling_operations(work, rows=3, tokens=4) == 3 * (2 * 1100 + 60 + 12 * 2.5)


def test_a_floor_is_the_larger_of_two():
    few = sampling_floor(Work(matrices=1000), "float32", CEILINGS, rows=2, tokens=1)
    assert few.bound == "bytes"
    assert few.seconds == 4000 / 1e9
    many = sampling_floor(Work(matrices=1000), "float32", CEILINGS, rows=200, tokens=1)
    assert many.bound == "operations"
    assert many.seconds == 200 * 2000 / 1e10
    unmeasured = sampling_floor(Work(matrices=1000), "int8", CEILINGS, rows=200, tokens=1)
    assert unmeasured.operations_seconds is None
    assert unmeasured.seconds == 1000 / 1e9


def test_training_operations_by_hand():
    work = Work(matrices=10, once=3, mixing=7)
    assert training_operations(work, images=2, tokens=5) == 3 * 2 * (5 * 20 + 6)
    assert training_operations(work, images=2, tokens=5, mixing=True) == 3 * 2 * (5 * 27 + 6)
    assert ssd_mixing(inner=6, state_size=4, chunk=8) == 2 * 8 * 4 + 2 * 8 * 6 + 2 * 2 * 6 * 4
    assert attention_mixing(width=6, tokens=3) * 3 == 2 * 2 * 6 * (1 + 2 + 3)


def test_a_training_step_by_hand():
    assert training_bytes(10, updates=False) == 10 * 4 * 2, "weights are read, gradients written"
    # The optimiser reads gradients, and reads and writes weights, both moments and the average.
    assert training_bytes(10, updates=True) == 10 * 4 * (2 + 1 + 2 * 3 + 2)
    work = Work(matrices=1000)
    step = {"images": 2, "tokens": 5, "parameters": 1000, "updates": True}
    few = training_floor(work, "float32", CEILINGS, **step)
    assert (few.bound, few.seconds) == ("bytes", 4 * 11 * 1000 / 1e9)
    many = training_floor(work, "float32", CEILINGS, **(step | {"images": 2000}))
    assert (many.bound, many.seconds) == ("operations", 3 * 2000 * 5 * 2000 / 1e10)


def test_work_survives_json():
    work = Work(matrices=3, memories=(Memory(state_bytes=1), Memory(cache_bytes=2)), mixing=4)
    assert Work.read(json.loads(json.dumps(asdict(work)))) == work
