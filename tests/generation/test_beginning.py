"""A batch begins without a wait for the batch before it: nothing is read from the device, and copies are queued.

On the CPU ``meta`` stands for a device (``pretended_device``); a CUDA device itself says so below.
"""

import pytest
import torch

from aimamba.devices import send
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.generation.engines.recorded_step import RecordedStep
from aimamba.generation.inpainting import inpaint
from aimamba.generation.plan import SamplingPlan, uniform_numbers
from waiting import counted_waits, pretended_device

CONFIGS = {
    "plain": SamplingConfig(),
    "guided": SamplingConfig(cfg_scale=2.0, temperature=0.8, temperature_end=1.0, top_k=5, top_p=0.9, min_p=0.01),
    "each its own": [
        SamplingConfig(cfg_scale=2.0, cfg_schedule="linear"),
        SamplingConfig(top_k=7, top_p=0.8),
        SamplingConfig(temperature=0.0, min_p=0.1),
    ],
}
LABELS = torch.tensor([0, 3, 5])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("prefix", [None, torch.tensor([[1, 2]])])
def test_no_token_of_a_batch_waits_not_even_the_first(make_aim, monkeypatch, config, prefix):
    model = make_aim().to("meta")
    engine = RecordedEngine(RecordedStep(model), lambda run: run)
    with pretended_device(monkeypatch) as (waits, sent):
        run = generate(model, LABELS, config, seeds=[1, 2, 3], prefix=prefix, engine=engine)
        tokens = [next(run).shape[1] for _ in range(model.config.num_tokens)]
    assert tokens == list(range(1, model.config.num_tokens + 1))
    assert waits == []
    assert sent() >= 4, "labels, scales, guided images and random numbers"


def test_the_next_batch_copies_no_state_of_the_one_before(make_aim):
    """The logits of the first batch are checked later, when its images have arrived; its memory is free by then."""
    model = make_aim()
    engine = RecordedEngine(RecordedStep(model), lambda run: run)
    first, second = (generate(model, LABELS, seeds=seeds, engine=engine) for seeds in ([1, 2, 3], [4, 5, 6]))
    for _ in range(model.config.num_tokens - 1):
        next(first)
    [recording] = engine._recordings.values()
    assert recording.resident() is not None
    codes = next(first)
    assert recording.resident() is None, "nothing that the next batch would have to copy out"
    memory = {name: tensor.data_ptr() for name, tensor in recording.memory.items()}
    *_, others = second
    assert list(first) == []
    assert {name: tensor.data_ptr() for name, tensor in recording.memory.items()} == memory
    for found, seeds in ((codes, [1, 2, 3]), (others, [4, 5, 6])):
        *_, expected = generate(model, LABELS, seeds=seeds, engine="plain")
        assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["plain", "resample"])
def test_a_finished_inpainting_holds_no_state(make_aim, method):
    model = make_aim()
    engine = RecordedEngine(RecordedStep(model), lambda run: run)
    length = model.config.num_tokens
    mask = torch.zeros(3, length, dtype=torch.bool)
    mask[:, 2:4] = True
    run = inpaint(
        model, LABELS, SamplingConfig(), codes=torch.ones(3, length, dtype=torch.long), mask=mask, seeds=[1, 2, 3],
        method=method, candidates=2, engine=engine,
    )  # fmt: skip
    found = next(codes for codes in run if codes.shape[1] == length)
    assert [recording.resident() for recording in engine._recordings.values()] == [None] * len(engine._recordings)
    assert found.shape == (3, length)
    assert list(run) == []


def test_the_pretended_device_sees_waits(monkeypatch):
    host, device = torch.ones(3), torch.device("meta")
    with pretended_device(monkeypatch) as (waits, sent):
        there = send(host, device)
        assert (waits, sent(), there.device.type) == ([], 1, "meta")
        host.to(device)
        host.to(device, non_blocking=True)
        torch.tensor([1.0], device=device)
        there.copy_(host)
        with pytest.raises(RuntimeError):
            there.sum().item()
        host.sum().item()
    copies = [f"{name} of memory that is not pinned" for name in ("_to_copy", "_to_copy")]
    assert waits[:3] == [*copies, "tensor"]
    assert "copy_ of memory that is not pinned" in waits
    assert waits[-1] in ("item", "_local_scalar_dense")


def test_sending_to_the_host_copies_nothing():
    tensor = torch.ones(3)
    assert send(tensor, tensor.device) is tensor


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_cuda_device_is_not_waited_for(make_aim, config):
    model = make_aim().cuda()
    configs = config if isinstance(config, list) else [config] * 3
    with counted_waits("cuda") as waits:
        SamplingPlan(model, LABELS, configs)
        uniform_numbers(model, [1, 2, 3])
    assert waits == []
