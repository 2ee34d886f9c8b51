"""Tasks in threads: group by group, bounded, and neither a task nor an error gets lost."""

import threading
from functools import partial

import pytest

from aimamba.data import writer as writing
from aimamba.data.writer import BackgroundWriter
from aimamba.errors import DataError

MANY = [1, 2, 4]


@pytest.mark.parametrize("threads", MANY)
def test_groups_are_finished_in_order(threads):
    done = []
    with BackgroundWriter(threads) as writer:
        for number in range(10):
            writer.put([partial(lambda *task: done.append((*task, threading.current_thread().name)), number, i)
                        for i in range(5)])  # fmt: skip
            assert len(done) >= 5 * number, "one group at most is unfinished"
    assert [number for number, *_ in done] == [number for number in range(10) for _ in range(5)]
    assert sorted((number, i) for number, i, _ in done) == [(number, i) for number in range(10) for i in range(5)]
    assert all(name.startswith("aimamba-writer") for *_, name in done)
    if threads == 1:
        assert [i for _, i, _ in done] == list(range(5)) * 10


def test_tasks_of_a_group_run_at_once():
    barrier = threading.Barrier(3, timeout=10)
    with BackgroundWriter(3) as writer:
        writer.put([barrier.wait] * 3)


def test_the_next_group_is_made_meanwhile_and_waits():
    go, begun, done = threading.Event(), threading.Event(), []
    with BackgroundWriter() as writer:
        writer.put([lambda: (begun.set(), go.wait(10), done.append(1))])
        assert begun.wait(10)
        assert done == [], "put did not wait"
        threading.Timer(0.05, go.set).start()
        writer.put([lambda: done.append(2)])
        assert done[0] == 1, "put waited for the first"
    assert done == [1, 2]


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (64, 4)])
def test_threads_leave_cores_to_others(monkeypatch, cores, threads):
    monkeypatch.setattr(writing, "usable_cores", lambda: cores)
    with BackgroundWriter() as writer:
        assert writer._executor._max_workers == threads


def fail():
    raise DataError("a.png: no space left")


def write(*tasks, raising=None, threads=1):
    """Hand over a group for each task, raise something in the block, and return the writer when it is left."""
    with BackgroundWriter(threads) as writer:
        for task in tasks:
            writer.put([task])
        if raising is not None:
            raise raising
    return writer


@pytest.mark.parametrize("threads", MANY)
def test_an_error_is_raised_by_the_next_put_and_ends_the_rest(threads):
    done = []
    with pytest.raises(DataError, match=r"^a\.png: no space left$"):
        write(fail, *[lambda: done.append(1)] * 3, threads=threads)
    assert done == []


def put_group(group):
    with BackgroundWriter(1) as writer:
        writer.put(group)


def test_an_error_drops_what_has_not_begun():
    """With one thread: at most the task after it has begun when it is noticed."""
    go, done = threading.Event(), []
    threading.Timer(0.05, go.set).start()
    with pytest.raises(DataError):
        put_group([fail, lambda: go.wait(10), *[lambda: done.append(1)] * 3])
    assert done == []


def test_of_several_errors_the_first_task_s_is_raised():
    def fail_after(seconds, name):
        threading.Event().wait(seconds)
        raise DataError(name)

    with pytest.raises(DataError, match="first"), BackgroundWriter(2) as writer:
        writer.put([partial(fail_after, 0.1, "first"), partial(fail_after, 0, "second")])


def test_the_error_of_the_last_task_is_raised_on_leaving():
    with pytest.raises(DataError, match="no space left"):
        write(fail)


@pytest.mark.parametrize("threads", MANY)
def test_an_interruption_loses_no_task(threads):
    go, done = threading.Event(), []
    threading.Timer(0.05, go.set).start()
    with pytest.raises(KeyboardInterrupt):
        write(lambda: (go.wait(10), done.append(1)), raising=KeyboardInterrupt(), threads=threads)
    assert done == [1]


def leave(go, task, error):
    with BackgroundWriter() as writer:
        writer.put([task])
        go.set()
        raise error


def test_an_error_of_the_block_goes_before_one_of_a_task():
    go = threading.Event()
    with pytest.raises(ValueError, match="of the block"):
        leave(go, lambda: (go.wait(10), fail()), ValueError("of the block"))
