"""``python -m tests.fuzz --minutes 10``: try to break every door with damaged and hostile input.

Each attempt must end in success or in a typed error of one line, within seconds and a bound of memory. What is found
is printed in its smallest form and kept in ``tests/fuzz/corpus``, from where every later run tries it again. Runs with
the same ``--seed`` and ``--examples`` are the same.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from hashlib import sha256
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.doors import CORPUS, Door, in_corpus, make_doors
from tests.fuzz.limits import TooSlowError, limit_memory, within

_LOG = os.fdopen(os.dup(2), "w")  # libraries in C write about damaged images to the other one
_PHASES = (Phase.generate, Phase.shrink)
_A_ROUND = 200  # attempts at one door before it is the next one's turn


def main() -> int:
    """Try all doors in turn and return the number of faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long to try")
    parser.add_argument("--examples", type=int, help="instead: how many attempts at each door")
    parser.add_argument("--seed", type=int, help="default: another one in every run")
    parser.add_argument("--door", help="this door alone")
    arguments = parser.parse_args()
    if arguments.minutes is None and arguments.examples is None:
        parser.error("give --minutes or --examples")
    start = int.from_bytes(os.urandom(4), "big") if arguments.seed is None else arguments.seed
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ |= {"HF_HUB_OFFLINE": "1", "AIMAMBA_CACHE": "cache", "HOME": "home"}
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        doors = [door for door in make_doors(Path(folder)) if arguments.door in (None, door.name)]
        limit_memory()
        for door in doors:
            for content in in_corpus(door.name):
                _try(door, content, found)
        ends = time.monotonic() + 60 * (1e9 if arguments.minutes is None else arguments.minutes)
        attempts = arguments.examples or _A_ROUND
        for number in range(start, start + (1 if arguments.examples else 1 << 62)):
            for door in doors:
                if time.monotonic() >= ends:
                    break
                _attack(door, number, attempts, ends, found)
            if time.monotonic() >= ends:
                break
        os.chdir("/")
    print(f"seed {start}: {len(found)} faults at {len(doors)} doors")
    return min(len(found), 100)


def _attack(door: Door, number: int, attempts: int, ends: float, found: dict[str, int]) -> None:
    """Try a door some times; report the smallest input that breaks it."""

    @seed(number)
    @settings(
        max_examples=attempts,
        deadline=None,
        database=None,
        phases=_PHASES,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(door.inputs)
    def attack(content: object) -> None:
        if time.monotonic() < ends:
            enter(door, content, known=found)

    try:
        attack()
    except BaseException as fault:
        if isinstance(fault, KeyboardInterrupt):
            raise
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        _report(door, fault, found)


def _try(door: Door, content: object, found: dict[str, int]) -> None:
    try:
        enter(door, content, known=found)
    except BaseException as fault:
        if isinstance(fault, KeyboardInterrupt):
            raise
        _report(door, fault, found)


class FaultError(AssertionError):
    """A door that broke.

    Attributes:
        content: What came in.
        place: Where it broke, so that one fault is reported once.
    """

    def __init__(self, message: str, content: object, place: str) -> None:
        super().__init__(message)
        self.content = content
        self.place = place


def enter(door: Door, content: object, *, known: dict[str, int]) -> None:
    """Open a door once.

    Raises:
        FaultError: It broke, in a way that is not among ``known``.
    """
    from aimamba.errors import AimambaError

    try:
        with within(_LOG):
            door.open(content)
    except AimambaError as error:
        if "\n" not in str(error) and "\r" not in str(error):
            return
        fault: BaseException = AssertionError(f"a message of several lines: {error}")
        fault.__traceback__ = error.__traceback__
    except OSError as error:
        if error.strerror is not None:  # the command line makes one line of it
            return
        fault = error
    except (Exception, TooSlowError) as error:
        fault = error
    else:
        return
    trace = fault.__traceback__
    place = ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "aimamba" in name or "tests" in name:
            place = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    place = f"{door.name} {type(fault).__name__} {place}"
    if place in known:
        known[place] += 1
        return
    raise FaultError(f"{type(fault).__name__}: {fault}", content, place) from fault


def _report(door: Door, fault: BaseException, found: dict[str, int]) -> None:
    content = getattr(fault, "content", None)
    place = getattr(fault, "place", f"{door.name} {type(fault).__name__}")
    found[place] = 1
    shown = repr(content)
    print(f"{place}: {str(fault)[:300]}\n  from {shown[:300]}{'...' if len(shown) > 300 else ''}", flush=True)
    if isinstance(content, bytes):
        path = CORPUS / door.name / sha256(content).hexdigest()[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"  kept as {path.relative_to(Path(__file__).parents[2])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
