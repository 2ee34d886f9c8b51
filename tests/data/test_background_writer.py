"""Tasks in a thread: in order, bounded, and neither a task nor an error gets lost."""

import threading

import pytest

from aimamba.data.writer import BackgroundWriter
from aimamba.errors import DataError


def test_tasks_are_finished_in_order():
    done = []
    with BackgroundWriter() as writer:
        for number in range(20):
            writer.put(lambda number=number: done.append((number, threading.current_thread().name)))
            assert writer.finished >= number, "at most one is unfinished"
    assert [number for number, _ in done] == list(range(20))
    assert all(name.startswith("aimamba-writer") for _, name in done)
    assert writer.finished == 20


def test_the_next_task_is_made_meanwhile_and_a_second_one_waits():
    go, begun = threading.Event(), threading.Event()
    with BackgroundWriter() as writer:
        writer.put(lambda: (begun.set(), go.wait(10)))
        assert begun.wait(10)
        assert writer.finished == 0, "put did not wait"
        threading.Timer(0.05, go.set).start()
        writer.put(lambda: None)
        assert writer.finished >= 1, "put waited for the first"


def fail():
    raise DataError("a.png: no space left")


def write(*tasks, raising=None):
    """Hand over some tasks, raise something in the block, and return the writer when it is left."""
    with BackgroundWriter() as writer:
        for task in tasks:
            writer.put(task)
        if raising is not None:
            raise raising
    return writer


def test_an_error_is_raised_by_a_later_put_and_ends_the_rest():
    done = []
    with pytest.raises(DataError, match=r"^a\.png: no space left$"):
        write(fail, *[lambda: done.append(1)] * 3)
    assert len(done) <= 1


def test_the_error_of_the_last_task_is_raised_on_leaving():
    with pytest.raises(DataError, match="no space left"):
        write(fail)


def test_an_interruption_loses_no_task():
    go, done = threading.Event(), []
    threading.Timer(0.05, go.set).start()
    with pytest.raises(KeyboardInterrupt):
        write(lambda: (go.wait(10), done.append(1)), raising=KeyboardInterrupt())
    assert done == [1]


def leave(go, task, error):
    with BackgroundWriter() as writer:
        writer.put(task)
        go.set()
        raise error


def test_an_error_of_the_block_goes_before_one_of_a_task():
    go = threading.Event()
    with pytest.raises(ValueError, match="of the block"):
        leave(go, lambda: (go.wait(10), fail()), ValueError("of the block"))
