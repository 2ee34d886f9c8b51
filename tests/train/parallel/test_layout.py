import pytest

from aimamba.errors import ConfigError
from aimamba.train.parallel.layout import Layout, ParallelConfig, check_shares, find_layout
from aimamba.train.settings import FitConfig
from tests.refusals import one_line_error


@pytest.mark.parametrize(
    ("given", "processes", "layout"),
    [
        ({}, 1, (1, 1)),
        ({}, 4, (4, 1)),
        ({"shard": 4}, 4, (1, 4)),
        ({"shard": 2}, 4, (2, 2)),
        ({"replicate": 2}, 4, (2, 2)),
        ({"replicate": 1}, 4, (1, 4)),
        ({"replicate": 2, "shard": 2}, 4, (2, 2)),
        ({"shard": 1}, 1, (1, 1)),
        ({"replicate": 1, "shard": 1}, 1, (1, 1)),
    ],
)
def test_what_is_not_given_follows_from_the_number_of_processes(given, processes, layout):
    assert find_layout(ParallelConfig(**given), processes) == Layout(*layout)


def test_without_torchrun_the_command_to_type_is_named():
    with one_line_error(
        ConfigError,
        r"^parallel.replicate = 2 x parallel.shard = 4 needs 8 processes, and there is one; type: "
        r"torchrun --nproc-per-node 8 -m aimamba train my-recipe --out 'a b'$",
    ):
        find_layout(ParallelConfig(replicate=2, shard=4), 1, ["train", "my-recipe", "--out", "a b"])


@pytest.mark.parametrize(
    ("given", "processes", "message"),
    [
        (
            {"replicate": 2, "shard": 2},
            8,
            "parallel.replicate = 2 x parallel.shard = 2 does not fit 8 processes; start",
        ),
        ({"shard": 3}, 4, "parallel.shard = 3 does not fit 4 processes; start a multiple of that, or leave"),
    ],
)
def test_a_product_that_is_not_the_number_of_processes_is_refused(given, processes, message):
    with one_line_error(ConfigError, message):
        find_layout(ParallelConfig(**given), processes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shard": 0}, "parallel.shard must be at least 1, got 0"),
        ({"replicate": -1}, "parallel.replicate must be at least 1, got -1"),
        ({"timeout": 1.0}, "parallel.timeout must be at least 5 seconds, got 1"),
    ],
)
def test_settings_out_of_range(given, message):
    with one_line_error(ConfigError, message):
        ParallelConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"batch_size": 12, "accumulation": 2},
            "fit.batch_size = 12 must be a multiple of 4 processes x fit.accumulation = 2; set one of them",
        ),
        ({"batch_size": 8, "cuda_graph": True}, "fit.cuda_graph records the step of one process, and there are 4"),
        ({"batch_size": 8, "compile": True}, "fit.compile = true compiles the model of one process, and there are 4"),
    ],
)
def test_settings_that_do_not_suit_several_processes(given, message):
    with one_line_error(ConfigError, message):
        check_shares(FitConfig(steps=1, lr=1.0, **given), 4)


def test_settings_that_do():
    check_shares(FitConfig(steps=1, lr=1.0, batch_size=8, accumulation=2, compile="blocks"), 4)
