"""GPUs by name or memory, and how fast they train."""

import pytest

from aimamba.errors import ConfigError
from aimamba.models import AIM_PRESETS
from aimamba.train.plan.cards import CARDS, GIB, MEASURED, find_card, rate_of
from refusals import one_line_error

H200, A100 = CARDS["h200-141gb"], CARDS["a100-80gb"]


def test_gpus_by_name_and_by_memory():
    assert find_card(None, None) is CARDS["h100-80gb"]
    assert find_card("a100-40gb", None).memory < 40 * GIB
    assert find_card(None, "48GB").memory == 48 * 10**9
    assert find_card(None, "44.5 gib").memory == 44.5 * GIB
    assert find_card(None, "48GB").rate is None
    both = find_card("h100-80gb", "64GiB")
    assert (both.name, both.memory, both.rate) == ("h100-80gb", 64 * GIB, CARDS["h100-80gb"].rate)


@pytest.mark.parametrize("memory", ["48", "GB", "-3GB", "0GB", "1e3GB", "nanGB", "48TB", "9999999GB", ""])
def test_amounts_that_are_none(memory):
    with one_line_error(ConfigError, match="--memory expects an amount such as 48GB"):
        find_card(None, memory)


def test_an_unknown_gpu_gets_a_suggestion():
    with one_line_error(ConfigError, match=r"unknown GPU 'h100'.*known GPUs: h100-80gb"):
        find_card("h100", None)


def test_measurements_name_known_gpus_and_presets():
    for each in MEASURED:
        assert each.card in CARDS
        assert each.preset in AIM_PRESETS
        assert each.tokens_per_second > 0


def test_a_measured_rate_is_taken_as_it_is():
    rate = rate_of(147_622_080, H200)
    assert rate.tokens_per_second == 292_000
    assert rate.source.startswith("measured on one h200-141gb: ")
    assert rate.recorded
    slower = rate_of(349_760_000, H200)
    assert (slower.tokens_per_second, slower.recorded) == (68_000, False)


def test_other_rates_are_scaled_and_say_so():
    rate = rate_of(147_622_080, A100)
    assert rate.tokens_per_second == pytest.approx(292_000 * 312 / 989)
    assert "an estimate, scaled by the bfloat16 rates of the GPUs from aim-b on one h200-141gb" in rate.source
    larger = rate_of(1_335_944_192, H200)
    assert larger.tokens_per_second == pytest.approx(70_400 * 763_291_392 / 1_335_944_192)
    assert "scaled by the parameters from aim-xl" in larger.source
    both = rate_of(1_335_944_192, A100)
    assert "scaled by the parameters and the bfloat16 rates" in both.source


def test_nothing_is_scaled_from_a_run_that_the_cpu_held_up():
    assert "from aim-xl" in rate_of(400_000_000, H200).source or "from aim-b" in rate_of(400_000_000, H200).source
    assert rate_of(349_760_000, A100).tokens_per_second > 68_000 * 312 / 989 * 1.5


def test_a_gpu_of_which_only_the_memory_is_known_has_no_rate():
    assert rate_of(147_622_080, find_card(None, "48GB")) is None
