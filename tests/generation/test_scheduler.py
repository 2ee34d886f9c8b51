"""Requests share decoding steps, join between tokens, and get the images that they would get alone."""

import threading

import pytest
import torch

from aimamba.errors import CheckpointError, ConfigError, DataError
from aimamba.generation import SamplingConfig, generate, make_engine
from aimamba.generation.batch import Job
from aimamba.generation.engines.recorded import RecordedEngine
from aimamba.generation.engines.recorded_step import RecordedStep
from aimamba.generation.requests import ClosedError, Failed, Made, Preview, QueueFullError
from aimamba.generation.rows import make_rows
from aimamba.generation.scheduler import Scheduler, SchedulerConfig
from aimamba.models.aim import BEGUN
from tests.decoding import Recorder

LENGTH = 9
SETTINGS = [
    SamplingConfig(seed=1),
    SamplingConfig(seed=2, cfg_scale=2.5),
    SamplingConfig(seed=3, temperature=0.5, top_k=5),
    SamplingConfig(seed=4, cfg_scale=1.7, cfg_schedule="linear", top_p=0.8),
    SamplingConfig(seed=5, temperature=0.0),
    SamplingConfig(seed=6, cfg_scale=4.0, cfg_schedule="power-cosine", cfg_power=2.0),
    SamplingConfig(seed=7, top_k=3, top_p=0.6, temperature=1.5),
    SamplingConfig(seed=8, cfg_scale=3.0, cfg_start=0.2, cfg_end=0.6, negative=2, min_p=0.05),
    SamplingConfig(seed=9, temperature=1.2, temperature_end=0.3),
]
JOBS = [Job(label=index % 6, config=config) for index, config in enumerate(SETTINGS)]  # 5 is the null class


@pytest.fixture(scope="module")
def model(make_aim):
    return make_aim(width=16, head_width=16, state_size=16)  # sizes that the native kernel takes


def make(model, kind):
    if kind == "recorded":
        return RecordedEngine(RecordedStep(model), Recorder())
    return make_engine(model, kind)


@pytest.fixture(scope="module", params=["plain", "native", "recorded"])
def engine(request, model):
    return make(model, request.param)


def decode(codes):
    """Images of one row: each pixel is a code."""
    return codes.cpu().to(torch.uint8)[:, None, :, None].expand(-1, -1, -1, 3)


def alone(model, job, engine="plain", **options):
    return list(generate(model, torch.tensor([job.label]), [job.config], engine=engine, **options))[-1][0]


class Sink(list):
    """Keeps the events of a request."""

    __call__ = list.append

    def images(self):
        return {event.number: event.codes for event in self if isinstance(event, Made)}


def scheduler(model, engine, **limits):
    return Scheduler(model, engine, decode, SchedulerConfig(**({"reserved": 0} | limits)), clock=lambda: 0.0)


def finish(scheduler, most=1000):
    for _ in range(most):
        if not scheduler.step() and not scheduler.waiting:
            return
    raise AssertionError("it never ends")


def test_images_that_join_at_any_token_are_those_they_would_be_alone(model, engine):
    made, sinks = scheduler(model, engine, images=4), []
    for job in JOBS:  # every other token a request comes, whatever the others are at
        sinks.append(Sink())
        made.submit([job], sinks[-1])
        made.step()
        made.step()
    finish(made)
    for job, sink in zip(JOBS, sinks, strict=True):
        assert torch.equal(sink.images()[0], alone(model, job, engine))
    assert made.images == len(JOBS)
    assert made.running == made.rows == made.waiting == 0


def test_a_newcomer_does_not_wait_for_a_batch_to_end(model):
    made, long, short = scheduler(model, make(model, "plain"), images=4, reserved=1), Sink(), Sink()
    made.submit([Job(label=0, config=SamplingConfig(seed=seed)) for seed in range(8)], long)
    for _ in range(3):
        made.step()
    assert made.running == 3  # one place is left for others
    made.submit([JOBS[1]], short)
    for _ in range(LENGTH):
        made.step()
    assert short.images().keys() == {0}
    assert long.images().keys() == {0, 1, 2}
    finish(made)
    assert long.images().keys() == set(range(8))


def test_places_are_shared_between_requests(model):
    made, first, second = scheduler(model, make(model, "plain"), images=2), Sink(), Sink()
    made.submit([JOBS[0]] * 4, first)
    made.submit([JOBS[0]] * 2, second)
    for _ in range(2 * LENGTH):
        made.step()
    assert (len(first.images()), len(second.images())) == (2, 2)
    finish(made)
    assert len(first.images()) == 4


def test_an_image_with_many_candidates_takes_as_many_places(model):
    made, many, one = scheduler(model, make(model, "plain"), images=4), Sink(), Sink()

    def run():
        yield from generate(model, torch.tensor([3]), SamplingConfig(), engine="plain")

    made.submit([Job(label=3, config=SamplingConfig(), run=run, places=3)] * 2, many)
    made.submit([JOBS[0]] * 2, one)
    for _ in range(LENGTH + 1):
        made.step()
    assert (len(many.images()), len(one.images())) == (1, 1), "the second ones had to wait"
    finish(made)
    assert (len(many.images()), len(one.images())) == (2, 2)


def test_an_image_that_takes_more_places_than_there_are_runs_alone(model):
    made, sink = scheduler(model, make(model, "plain"), images=2), Sink()

    def run():
        yield from generate(model, torch.tensor([3]), SamplingConfig(), engine="plain")

    made.submit([Job(label=3, config=SamplingConfig(), run=run, places=16)], sink)
    finish(made)
    assert len(sink.images()) == 1


def test_previews_take_no_more_time_than_the_steps(model):
    now = 0.0

    def slow(codes):
        nonlocal now
        now += 10.0 * len(codes)  # seconds; a step takes none
        return decode(codes)

    sink = Sink()
    made = Scheduler(model, make(model, "plain"), slow, SchedulerConfig(reserved=0), clock=lambda: now)
    made.submit([JOBS[0]], sink, preview_every=1)
    finish(made)
    assert [type(event) for event in sink] == [Preview, Made], "the first one used up what there was"


def test_cancelled_images_leave_the_others_alone(model, engine):
    made, sinks = scheduler(model, engine, images=3), [Sink() for _ in JOBS]
    requests = [made.submit([job, job], sink) for job, sink in zip(JOBS, sinks, strict=True)]
    for _ in range(4):
        made.step()
    assert made.running == 3
    made.cancel(requests[1])  # one image of it is in the batch
    made.cancel(requests[5])  # both wait
    made.step()
    assert made.cancelled == 4
    finish(made)
    made.cancel(requests[0])  # has ended: nothing happens
    for index, (job, sink) in enumerate(zip(JOBS, sinks, strict=True)):
        assert len(sink) == (0 if index in (1, 5) else 2)
        assert all(torch.equal(codes, alone(model, job, engine)) for codes in sink.images().values())
    assert made.cancelled == 4


def test_known_codes_stay_and_the_others_follow_them(model):
    known = torch.full((LENGTH,), -1)
    known[:4] = torch.tensor([3, 1, 4, 1])
    job = Job(label=2, config=SETTINGS[1], known=known)
    made, sink = scheduler(model, make(model, "plain")), Sink()
    made.submit([job, JOBS[2]], sink)
    finish(made)
    assert torch.equal(sink.images()[0], alone(model, job, prefix=known[None, :4]))
    assert torch.equal(sink.images()[1], alone(model, JOBS[2]))


def test_previews_come_every_few_tokens_and_hold_what_is_generated(model):
    made, sink = scheduler(model, make(model, "plain")), Sink()
    made.submit([JOBS[0]], sink, preview_every=4)
    finish(made)
    codes = alone(model, JOBS[0])
    assert [event.tokens for event in sink[:-1]] == [4, 8]
    for event in sink[:-1]:
        assert isinstance(event, Preview)
        expected = torch.where(torch.arange(LENGTH) < event.tokens, codes, 0)
        assert torch.equal(event.image, decode(expected[None])[0])
    assert torch.equal(sink[-1].codes, codes)


def test_the_queue_is_bounded_and_says_when_to_come_again(model):
    made = scheduler(model, make(model, "plain"), images=1, waiting=4)
    made.submit([JOBS[0]] * 3, Sink())
    with pytest.raises(QueueFullError, match="3 images wait already, and 4 may wait") as refused:
        made.submit([JOBS[0]] * 2, Sink())
    assert refused.value.seconds > 0
    made.submit([JOBS[0]], Sink())
    assert made.waiting == 4


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(label=6, config=SETTINGS[0]), "label 6 is out of range: expected 0 to 4"),
        (Job(label=0, config=SETTINGS[0], known=torch.zeros(3, dtype=torch.long)), "expected 9 known codes"),
        (Job(label=0, config=SETTINGS[0], known=torch.full((LENGTH,), 24)), "known codes must be 0 to 23"),
    ],
)
def test_jobs_that_do_not_fit_are_refused(model, job, message):
    with pytest.raises(DataError, match=message):
        scheduler(model, make(model, "plain")).submit([job], Sink())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"images": 0}, "images generated together must be 1 to 4,096, got 0"),
        ({"images": 10**11}, "images generated together must be 1 to 4,096, got 100000000000"),
        ({"waiting": 0}, "waiting images must be 1 or more, got 0"),
        ({"images": 4, "reserved": 4}, r"below the images generated together \(4\), got 4"),
    ],
)
def test_limits_are_checked(limits, message):
    with pytest.raises(ConfigError, match=message):
        SchedulerConfig(**limits)


def test_damaged_weights_fail_a_request_and_not_the_scheduler(make_aim):
    damaged = make_aim()
    with torch.no_grad():
        damaged.condition.table.weight[1] = torch.nan
    made, sick, well = scheduler(damaged, make(damaged, "plain")), Sink(), Sink()
    made.submit([Job(label=1, config=SETTINGS[0])] * 2, sick)
    made.submit([Job(label=0, config=SETTINGS[0])], well)
    finish(made)
    [event] = sick
    assert isinstance(event, Failed)
    assert isinstance(event.error, CheckpointError)
    assert well.images().keys() == {0}


def test_a_step_that_fails_ends_its_requests_and_later_ones_work(model, caplog):
    engine = make(model, "plain")
    made, sink, later = scheduler(model, engine, images=1), Sink(), Sink()
    made.submit([JOBS[0]], sink)
    made.submit([JOBS[1]], later)
    made.step()
    step, made._batch._rows.step = made._batch._rows.step, None
    made.step()
    assert step is not None
    finish(made)
    [failed] = sink
    assert isinstance(failed.error, TypeError)
    assert "a decoding step failed" in caplog.text
    assert torch.equal(later.images()[0], alone(model, JOBS[1]))


def test_a_sink_that_fails_ends_only_its_own_request(model, caplog):
    made, well = scheduler(model, make(model, "plain")), Sink()
    made.submit([JOBS[0]], lambda event: 1 / 0)
    made.submit([JOBS[1]], well)
    finish(made)
    assert "a request's sink failed" in caplog.text
    assert well.images().keys() == {0}


def test_a_thread_finishes_what_is_there_and_then_ends(model):
    made, sink = scheduler(model, make(model, "native"), images=2), Sink()
    thread = threading.Thread(target=made.run)
    thread.start()
    made.submit(JOBS[:3], sink)
    made.close()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert sink.images().keys() == {0, 1, 2}
    with pytest.raises(ClosedError):
        made.submit(JOBS[:1], sink)


def test_recorded_rows_take_few_numbers_and_shrink_again(model):
    recorder = Recorder()
    engine = RecordedEngine(RecordedStep(model), recorder)
    rows, begun = make_rows(engine), model.begun(torch.zeros(1, dtype=torch.long))
    for count in range(20):
        rows.append()
        rows.restart(count, begun)
    with torch.inference_mode():
        assert rows.step(torch.full((20,), BEGUN)).shape == (20, 24)
        for _ in range(15):
            rows.pop()
        plain = make_rows(make(model, "plain"))
        for count in range(5):
            plain.append()
            plain.restart(count, begun)
        plain.step(torch.full((5,), BEGUN))
        inputs = torch.arange(5)
        assert torch.allclose(rows.step(inputs), plain.step(inputs), atol=1e-4)
    assert recorder.recorded == 2  # for 32 rows and for 8, or 16


def test_loops_of_their_own_run_beside_the_batch_and_end_when_cancelled(model):
    ended = []

    def run(seed):
        try:
            yield from generate(model, torch.tensor([3]), SamplingConfig(seed=seed), engine="plain")
        finally:
            ended.append(seed)

    def fails():
        yield torch.zeros(1, 1, dtype=torch.long)
        raise CheckpointError("damaged")

    made, alone_, shared, failing = scheduler(model, make(model, "plain"), images=8), Sink(), Sink(), Sink()
    jobs = [Job(label=3, config=SamplingConfig(seed=seed), run=lambda seed=seed: run(seed)) for seed in (1, 2)]
    made.submit(jobs[:1], alone_)
    made.submit([JOBS[1]], shared, preview_every=2)
    made.submit([Job(label=0, config=SETTINGS[0], run=fails), JOBS[0]], failing)
    cancelled = made.submit(jobs[1:], Sink())
    made.step()
    made.step()
    made.cancel(cancelled)
    made.step()
    assert ended == [2]
    finish(made)
    assert torch.equal(alone_.images()[0], alone(model, Job(label=3, config=SamplingConfig(seed=1))))
    assert torch.equal(shared.images()[0], alone(model, JOBS[1]))
    [event] = failing
    assert isinstance(event.error, CheckpointError)


def test_images_that_end_together_are_sent_while_others_are_decoded(model):
    events = []

    def slowly(codes):
        events.append(len(codes))
        return decode(codes)

    made = Scheduler(model, make(model, "plain"), slowly, SchedulerConfig(images=10, reserved=0))
    made.submit([Job(label=0, config=SamplingConfig(seed=seed)) for seed in range(10)], events.append)
    finish(made)
    decoded = [event for event in events if isinstance(event, int)]
    assert decoded == [4, 4, 2]
    assert events[0] == 4
    assert isinstance(events[1], Made)
    assert [event.number for event in events if isinstance(event, Made)] == list(range(10))


def test_conditions_of_classes_are_computed_once(model, monkeypatch):
    computed, begun = [], model.begun
    monkeypatch.setattr(model, "begun", lambda given: computed.append(given.tolist()) or begun(given))
    made = scheduler(model, make(model, "plain"), images=4)
    made.submit([Job(label=label, config=SamplingConfig(cfg_scale=2.0)) for label in (1, 2, 1, 2)], Sink())
    finish(made)
    null_class = model.condition.null_class
    assert computed == [[1], [null_class], [2]]
