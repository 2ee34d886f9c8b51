"""When a process counts as lost, and what the line says. That it is printed in time: ``train/test_many.py``."""

import os
import time

import pytest
from torch.distributed import HashStore

from aimamba.watch import Watch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def watches(clock) -> list[Watch]:
    """Three processes that have taken their first step, and have seen each other."""
    store = HashStore()
    watches = [Watch(store, rank, 3, timeout=10.0, advice="try again") for rank in range(3)]
    for watch in watches:
        watch.begin()
        watch.progress()
        watch.expect_progress()
    pass_time(watches, clock, 0.0)
    return watches


def pass_time(watches: list[Watch], clock: Clock, seconds: float, *, silent: tuple[int, ...] = ()) -> None:
    """Let some time pass, in which all but ``silent`` show signs of life."""
    clock.now += seconds
    for rank, watch in enumerate(watches):
        if rank not in silent:
            watch._show()
    for watch in watches:
        watch._look()


def test_all_is_well(watches, clock):
    for _ in range(5):
        for watch in watches:
            watch.progress()
        pass_time(watches, clock, 9.0)
        assert [watch._fault() for watch in watches] == [None] * 3


def test_a_process_without_a_sign_is_named(watches, clock):
    for watch in watches:
        watch.progress()
    pass_time(watches, clock, 9.0, silent=(1,))
    assert watches[0]._fault() is None
    for watch in watches:
        watch.progress()
    pass_time(watches, clock, 2.0, silent=(1,))
    assert watches[0]._fault().startswith("rank 1 (")
    assert watches[0]._fault().endswith(") gave no sign for 10 s")


def test_a_process_that_failed_is_named_soon_and_one_that_is_done_is_not(watches, clock):
    watches[1].end()
    pass_time(watches, clock, 9.0, silent=(1,))
    assert watches[0]._fault() is None
    watches[2].end("ConfigError")
    pass_time(watches, clock, 0.0, silent=(1, 2))
    watches[0].progress()
    pass_time(watches, clock, 1.4, silent=(1, 2))
    assert watches[0]._fault() is None, "this one may be about to end with the same error"
    pass_time(watches, clock, 0.2, silent=(1, 2))
    assert watches[0]._fault().endswith(") ended")
    assert "rank 2 (" in watches[0]._fault()


def test_a_process_that_is_behind_is_named(watches, clock):
    for watch in watches[:2]:
        watch.progress()
    pass_time(watches, clock, 11.0)
    for watch in watches:
        assert watch._fault().startswith("no step was finished for 11 s: rank 2 (")


def test_where_all_are_equally_far_nobody_is_named(watches, clock):
    pass_time(watches, clock, 11.0)
    expected = "no step was finished for 11 s: a process hangs, and it is not known which"
    assert [watch._fault() for watch in watches] == [expected] * 3


def test_a_run_of_slow_steps_has_more_time(watches, clock):
    pass_time(watches, clock, 9.0)
    for watch in watches:
        watch.progress()
    pass_time(watches, clock, 30.0)
    assert watches[0]._fault() is None
    pass_time(watches, clock, 10.0)
    assert watches[0]._fault() is not None


def test_while_others_wait_patiently_nobody_hangs(watches, clock):
    with watches[0].patient():
        pass_time(watches, clock, 1000.0)
        assert watches[0]._fault() is None
    assert watches[0]._fault() is None, "time counts from the end of it"
    pass_time(watches, clock, 11.0)
    assert watches[0]._fault() is not None


def test_the_first_step_may_take_any_time(clock):
    watches = [Watch(HashStore(), 0, 1, timeout=10.0)]
    watches[0].begin()
    clock.now += 1000
    assert watches[0]._fault() is None


def test_after_a_failed_exchange_the_silent_one_is_blamed(watches, clock, monkeypatch):
    def sleep(seconds: float) -> None:
        clock.now += seconds
        watches[2]._show()

    monkeypatch.setattr(time, "sleep", sleep)
    line = watches[0].blame()
    assert line.startswith("rank 0 stops: rank 1 (")
    assert line.endswith(") ended or lost the connection; try again")


def test_what_one_process_tells_the_others_tell_too(watches, clock, monkeypatch, capsys):
    monkeypatch.setattr(os, "_exit", lambda code: None)
    watches[1]._tell("no step was finished for 11 s: rank 1 (here) hangs")
    pass_time(watches, clock, 0.0, silent=(1,))
    assert watches[0]._fault() == "no step was finished for 11 s: rank 1 (here) hangs"
    assert watches[2].blame() == "rank 2 stops: no step was finished for 11 s: rank 1 (here) hangs; try again"
    printed = "aimamba: rank 1 stops: no step was finished for 11 s: rank 1 (here) hangs; try again\n"
    assert capsys.readouterr().err == printed
