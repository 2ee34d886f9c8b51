"""Batches follow each other without a pause: what is waited for, when, and that nothing is lost or mixed up."""

from contextlib import contextmanager

import pytest
import torch

from aimamba import CheckpointError, Pipeline
from aimamba.generation import SamplingConfig
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.generation.engines.recorded_step import RecordedStep
from aimamba.generation.finished import Fetched, Fetcher, finished_batches
from waiting import counted_waits

LENGTH = 4


class SlowFetched(Fetched):
    """Arrives when it has been asked for a number of times; notes when it is waited for."""

    def __init__(self, log, number, polls, copies):
        self.log, self.number, self.polls, self.copies = log, number, polls, copies

    def ready(self):
        self.polls -= 1
        return self.polls < 0

    def wait(self):
        self.log.append(f"wait {self.number}" if self.polls >= 0 else f"take {self.number}")
        return self.copies


class SlowFetcher(Fetcher):
    """Stands for a stream beside the one that computes."""

    def __init__(self, log, polls):
        self.log, self.polls, self.number = log, polls, 0

    def fetch(self, *tensors):
        self.number += 1
        self.log.append(f"fetch {self.number}")
        return SlowFetched(self.log, self.number, self.polls, [tensor.clone() for tensor in tensors])

    @contextmanager
    def beside(self):
        self.log.append("beside")
        yield


def make_runs(log, number, damaged=()):
    """Runs of two images whose tokens are all the number of the run."""

    def run(index):
        for tokens in range(1, LENGTH + 1):
            log.append(f"token {index}.{tokens}")
            yield torch.full((2, tokens), index)
        log.append(f"check {index}")
        if index in damaged:
            raise CheckpointError(f"run {index} is damaged")

    return map(run, range(1, number + 1))


def decode(codes):
    return codes[:, :1, None, None].expand(2, 8, 8, 3).to(torch.uint8), torch.tensor(True)


def test_a_batch_is_handed_over_between_two_tokens_of_the_next():
    log = []
    found = []
    for finished in finished_batches(make_runs(log, 3), LENGTH, decode, SlowFetcher(log, polls=3)):
        log.append("handed over")
        found.append((int(finished.codes[0, 0]), finished.images.shape, int(finished.images[0, 0, 0, 0])))
    assert found == [(index, (2, 8, 8, 3), index) for index in (1, 2, 3)]
    # Asked once after it was queued, then after every token: the third token of the next batch finds it there.
    first, second = log.index("take 1"), log.index("token 2.3")
    assert second < first < log.index("token 2.4")
    assert log[first : first + 4] == ["take 1", "beside", "check 1", "handed over"]
    assert log[-4:] == ["wait 3", "beside", "check 3", "handed over"], "only the last one is waited for"
    assert [entry for entry in log if entry.startswith("wait")] == ["wait 3"]


def test_the_next_batch_is_queued_before_a_wait():
    log = []
    assert len(list(finished_batches(make_runs(log, 2), LENGTH, decode, SlowFetcher(log, polls=99)))) == 2
    assert log.index("token 2.4") < log.index("wait 1") < log.index("fetch 2")


def test_at_once_without_a_device():
    log = []
    batches = finished_batches(make_runs(log, 2), LENGTH, decode, Fetcher(torch.device("cpu")))
    assert int(next(batches).codes[0, 0]) == 1
    assert log[-1] == "check 1", "nothing of the next batch has begun"


@pytest.mark.parametrize("polls", [0, 2, 99])
def test_a_damaged_batch_comes_after_those_before_it(polls):
    batches = finished_batches(make_runs([], 4, damaged=[3]), LENGTH, decode, SlowFetcher([], polls))
    found = []
    with pytest.raises(CheckpointError, match="run 3 is damaged"):
        found += (int(finished.codes[0, 0]) for finished in batches)
    batches = finished_batches(make_runs([], 4, damaged=[3]), LENGTH, decode, SlowFetcher([], polls))
    assert [int(next(batches).codes[0, 0]) for _ in range(2)] == [1, 2]


def test_damaged_images_are_refused():
    def broken(codes):
        images, _ = decode(codes)
        return images, torch.tensor(False)

    with pytest.raises(CheckpointError, match="images contain NaN"):
        next(finished_batches(make_runs([], 1), LENGTH, broken, Fetcher(torch.device("cpu"))))


@pytest.fixture
def pipeline(make_vq, make_aim):
    return Pipeline(make_vq(), make_aim(vocab_size=make_vq().config.codebook_size, num_tokens=9), engine="plain")


def test_a_pipelines_batches_are_those_of_generate_and_decode(pipeline, monkeypatch):
    config, batches = SamplingConfig(cfg_scale=2.0), [[(0, 5), (3, 6)], [(1, 7)]]
    log, tokens = [], []
    monkeypatch.setattr("aimamba.pipeline.core.Fetcher", lambda device: SlowFetcher(log, polls=3))
    found = list(pipeline.batches(batches, config, progress=tokens.append))
    assert tokens == [2] * 9 + [1] * 9
    for batch, finished in zip(batches, found, strict=True):
        labels, seeds = zip(*batch, strict=True)
        *_, codes = pipeline.generate(torch.tensor(labels), config, seeds=seeds)
        assert torch.equal(finished.codes, codes)
        assert torch.equal(finished.images, pipeline.decode(codes).permute(0, 2, 3, 1))


def test_no_wait_between_the_tokens_of_a_pipeline(pipeline, monkeypatch):
    """As far as operators tell; a CUDA device itself says so below."""
    monkeypatch.setattr("aimamba.pipeline.core.Fetcher", lambda device: SlowFetcher([], polls=10**6))
    waits = []
    engine = RecordedEngine(RecordedStep(pipeline.generator), lambda run: run)
    monkeypatch.setattr(pipeline, "prepare", lambda: engine)

    def count(run):
        for index in range(10):
            with counted_waits() as found:
                try:
                    codes = next(run)
                except StopIteration:
                    return
            waits.extend((index, wait) for wait in found)
            yield codes

    generate = pipeline.generate
    monkeypatch.setattr(pipeline, "generate", lambda *given, **named: count(generate(*given, **named)))
    assert len(list(pipeline.batches([[(0, 1)], [(1, 2)]], SamplingConfig()))) == 2
    middle = [wait for index, wait in waits if 0 < index < 9]
    assert middle == []  # of the first token see test_beginning


@pytest.mark.gpu
@torch.no_grad()
def test_images_of_a_cuda_device(make_vq, make_aim):
    vq = make_vq(channels=32, z_channels=16).cuda()
    aim = make_aim(vocab_size=vq.config.codebook_size, num_tokens=9, head_width=16, width=32).cuda()
    pipeline = Pipeline(vq, aim)
    batches = [[(label, 10 * label + seed) for seed in range(9)] for label in range(3)]
    found = list(pipeline.batches(batches, SamplingConfig()))
    assert [finished.images.is_pinned() for finished in found] == [True] * 3
    for batch, finished in zip(batches, found, strict=True):
        labels, seeds = zip(*batch, strict=True)
        *_, codes = pipeline.generate(torch.tensor(labels), SamplingConfig(), seeds=seeds)
        assert torch.equal(finished.codes, codes.cpu())
        assert torch.equal(finished.images, pipeline.decode(codes).permute(0, 2, 3, 1).cpu())
