"""Several processes: what they exchange, and how one waits for another."""

import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from aimamba import distributed
from aimamba.distributed import Place, Team, find_place, one_voice, own_device
from aimamba.errors import ConfigError
from tests.refusals import one_line_error

sys.path.append(str(Path(__file__).parent / "train"))

CPU = torch.device("cpu")


def team(timeout: float = 5.0) -> Team:
    place = find_place()
    assert place is not None
    return Team(place, CPU, timeout=timeout)


def exchange(rank: int) -> dict[str, object]:
    """Use each function in three processes of two rows each."""
    rows = torch.arange(6.0).view(6, 1)[2 * rank : 2 * rank + 2].requires_grad_()
    with team() as members:
        rng = torch.Generator().manual_seed(0)
        sum_ = distributed.summed(rows.sum())
        sum_.square().backward()
        order = []
        members.in_turn(lambda: (time.sleep(0.2), order.append(time.monotonic())))
        return {
            "size": distributed.size(),
            "mean": float(distributed.mean(torch.tensor(float(rank)))),
            "total": float(distributed.total(torch.tensor(float(rank)))),
            "gathered": distributed.gathered(rows).flatten().tolist(),
            "uniform": distributed.uniform((2, 3), rng, CPU).tolist(),
            "sum": float(sum_.detach()),
            "gradient": rows.grad.flatten().tolist(),
            "shared": members.shared(lambda: {"from": rank, "nan": float("inf")}),
            "turn": order[0],
        }


def fail_in_turn(rank: int) -> None:
    def fail() -> None:
        raise ConfigError("no images")

    with team() as members:
        members.in_turn(fail)


def fail_shared(rank: int) -> None:
    def fail() -> None:
        raise ConfigError("no images")

    with team() as members:
        members.shared(fail)


def test_three_processes(tmp_path):
    from ranks import together

    found = together(3, exchange, logs=tmp_path)
    whole = torch.rand((6, 3), generator=torch.Generator().manual_seed(0))
    for rank, one in enumerate(found):
        assert one["size"] == 3
        assert (one["mean"], one["total"]) == (1.0, 3.0)
        assert one["gathered"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        assert_close(torch.tensor(one["uniform"]), whole[2 * rank : 2 * rank + 2], rtol=0, atol=0)
        assert one["sum"] == 15.0
        assert one["gradient"] == [90.0, 90.0], "the sum of three times 2 x 15"
        assert one["shared"] == {"from": 0, "nan": float("inf")}
    assert found[0]["turn"] + 0.15 < min(found[1]["turn"], found[2]["turn"])


@pytest.mark.parametrize("function", [fail_in_turn, fail_shared])
def test_an_error_of_the_first_process_is_told_once(tmp_path, function):
    from ranks import Ranks

    ranks = Ranks(2, function, logs=tmp_path)
    ranks.wait()
    assert ranks.codes == [2, 2]
    assert ranks.errors == ["aimamba: no images\n", ""]


def test_one_process_exchanges_nothing():
    rows = torch.ones(2, 3)
    for function in (distributed.mean, distributed.total, distributed.gathered, distributed.summed):
        assert function(rows) is rows
    drawn = distributed.uniform((2, 3), torch.Generator().manual_seed(1), CPU)
    assert_close(drawn, torch.rand((2, 3), generator=torch.Generator().manual_seed(1)), rtol=0, atol=0)


def test_the_place_is_what_torchrun_notes():
    assert find_place({}) is None
    assert find_place({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is None
    for rank, size in (("2", "2"), ("0", "9" * 5000), ("9" * 5000, "2")):
        with one_line_error(ConfigError, "no torchrun sets RANK="):
            find_place({"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": "0"})
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert find_place(given) == Place(rank=5, size=8, local_rank=1)


def test_devices_follow_the_local_rank(monkeypatch):
    place = Place(rank=5, size=8, local_rank=1)
    assert own_device("cpu", place) == CPU
    with one_line_error(ConfigError, "--device cuda:1 is one device, and there are 8 processes; give auto"):
        own_device("cuda:1", place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto", place) == torch.device("cuda", 1)
    with one_line_error(ConfigError, "there are 2 CUDA devices on this machine and more .* --nproc-per-node 2"):
        own_device("cuda", Place(rank=5, size=8, local_rank=2))


def test_the_first_process_alone_reports_a_wrong_setting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for rank, error in ((0, ConfigError), (1, SystemExit)):
        with pytest.raises(error), one_voice(Place(rank=rank, size=2, local_rank=rank)):
            raise ConfigError("wrong")
    with pytest.raises(ConfigError), one_voice(None):
        raise ConfigError("wrong")
