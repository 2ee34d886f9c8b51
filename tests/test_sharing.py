"""Units of work that several processes share."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from aimamba.distributed import Team, find_place
from aimamba.sharing import Sharing

sys.path.append(str(Path(__file__).parent / "train"))

COUNT = 23


def results(numbers, rank, slow=()):
    """A unit's result depends on its number alone; some processes are slow."""
    for number in numbers:
        time.sleep(0.05 if rank in slow else 0.001)
        yield torch.full((2, 1 + number % 3), float(number)), torch.tensor([number, rank], dtype=torch.int32)


def share(rank):
    place = find_place()
    with Team(place, torch.device("cpu"), timeout=10.0) as team:
        sharing = Sharing(team)
        units = sharing.units(COUNT)
        order = [(part.tolist(), who.tolist()) for part, who in units.in_order(results(units, rank, slow=(0, 2)))]
        shown = []
        units = sharing.units(7, shown.append)
        taken = []
        for number in units:
            taken.append(number)
            time.sleep(0.02)
            units.advance(10)
        units.finish()
        known = np.full(6, -1, np.int32)
        known[rank::3] = rank
        return {
            "order": order,
            "shown": sum(shown),
            "taken": taken,
            "union": sharing.union(known).tolist(),
            "first": sharing.in_first(lambda: rank + 5, -1),
        }


def test_three_processes_share_units(tmp_path):
    from ranks import together

    found = together(3, share, logs=tmp_path)
    order = found[0]["order"]
    assert [part for part, _ in order] == [part.tolist() for part, _ in results(range(COUNT), 0)]
    assert [who[0] for _, who in order] == list(range(COUNT))
    counts = [[who[1] for _, who in order].count(rank) for rank in range(3)]
    assert min(counts) > 0
    assert counts[1] > counts[0], "who is free takes the next one"
    assert [one["order"] for one in found[1:]] == [[], []]
    assert sorted(number for one in found for number in one["taken"]) == list(range(7))
    assert [one["shown"] for one in found] == [70, 0, 0]
    assert [one["union"] for one in found] == [[0, 1, 2, 0, 1, 2]] * 3
    assert [one["first"] for one in found] == [5, -1, -1]


def test_one_process_does_all_units():
    sharing, shown = Sharing(), []
    units = sharing.units(3, shown.append)
    found = units.in_order(results(units, 0))
    assert [who.tolist() for _, who in found] == [[0, 0], [1, 0], [2, 0]]
    units.advance(4)
    units.finish()
    assert shown == [4]
    known = np.array([1, -1], np.int32)
    assert sharing.union(known) is known
    assert sharing.once(lambda: 3) == sharing.in_first(lambda: 3, 0) == sharing.in_turn(lambda: 3) == 3
