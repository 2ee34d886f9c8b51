"""Reading and writing settings: strictly, with the key in every message."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimamba.config import Difference, check, first_difference, flatten, from_mapping, to_mapping
from aimamba.errors import ConfigError, suggest
from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiMConfig, VQConfig
from aimamba.train.settings import FitConfig
from refusals import one_line_error


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    rate: float = 0.5
    title: str = "none"
    quick: bool = False
    kind: Literal["plain", "fancy"] = "plain"
    widths: tuple[int, ...] = (1, 2)
    weights: tuple[float, ...] = ()
    limit: int | None = None
    mode: Literal["a", "b"] | None = None
    inner: Inner = field(default_factory=lambda: Inner(depth=1))
    maybe: Inner | None = None
    compile: bool | Literal["blocks"] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.count >= 0, f"Outer: count must be 0 or more, got {self.count}")


def refusal(values, cls=Outer):
    with one_line_error(ConfigError) as caught:
        from_mapping(cls, values, where="recipe.toml")
    return str(caught.value)


outers = st.builds(
    Outer,
    count=st.integers(0, 1000),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    title=st.text(),
    quick=st.booleans(),
    kind=st.sampled_from(["plain", "fancy"]),
    widths=st.lists(st.integers()).map(tuple),
    weights=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
    limit=st.none() | st.integers(),
    mode=st.sampled_from([None, "a", "b"]),
    inner=st.builds(Inner, depth=st.integers(), names=st.lists(st.text()).map(tuple)),
    maybe=st.none() | st.builds(Inner, depth=st.integers()),
)


@given(outers)
def test_round_trip_through_json(config):
    values = json.loads(json.dumps(to_mapping(config)))
    assert from_mapping(Outer, values, where="test") == config


@pytest.mark.parametrize("config", [*AIM_PRESETS.values(), *VQ_PRESETS.values()])
def test_presets_round_trip(config):
    cls = type(config)
    assert cls in (AiMConfig, VQConfig)
    assert from_mapping(cls, json.loads(json.dumps(to_mapping(config))), where="test") == config


def test_plain_values():
    values = to_mapping(Outer(count=3, maybe=Inner(depth=2, names=("x",))))
    assert values["widths"] == [1, 2]
    assert values["maybe"] == {"depth": 2, "names": ["x"]}
    assert "limit" not in values, "TOML has no null"
    assert "mode" not in values


def test_defaults_fill_missing_keys():
    assert from_mapping(Outer, {"count": 1}, where="test") == Outer(count=1)


def test_integers_become_floats_where_the_annotation_says_so():
    config = from_mapping(Outer, {"count": 1, "rate": 2, "weights": [1, 2.5]}, where="test")
    assert isinstance(config.rate, float)
    assert all(isinstance(weight, float) for weight in config.weights)


def test_none_is_accepted_where_it_is_allowed():
    assert from_mapping(Outer, {"count": 1, "limit": None, "mode": None, "maybe": None}, where="test") == Outer(count=1)


def test_unknown_keys_are_named_with_a_suggestion():
    message = refusal({"count": 1, "titel": "x"})
    assert message.startswith("recipe.toml: unknown key 'titel' (did you mean 'title'")
    assert "known keys: count, rate, title" in message
    assert "did you mean" not in refusal({"count": 1, "zzzzzz": 1})


def test_unknown_keys_of_a_nested_dataclass():
    assert "recipe.toml: inner: unknown key 'dept' (did you mean 'depth'?)" in refusal(
        {"count": 1, "inner": {"dept": 1}}
    )


def test_missing_keys_are_named():
    assert refusal({}) == "recipe.toml: key 'count' is missing"
    assert refusal({"count": 1, "inner": {}}) == "recipe.toml: inner: key 'depth' is missing"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", "3", "count must be int, got '3'"),
        ("count", 3.0, "count must be int, got 3.0"),
        ("count", True, "count must be int, got True"),
        ("count", None, "count must be int, got None"),
        ("rate", "fast", "rate must be float, got 'fast'"),
        ("rate", True, "rate must be float, got True"),
        ("title", 3, "title must be str, got 3"),
        ("quick", 1, "quick must be bool, got 1"),
        ("kind", "fanci", "kind must be one of 'plain', 'fancy', got 'fanci' (did you mean 'fancy'?)"),
        ("kind", ["plain"], "kind must be one of 'plain', 'fancy', got ['plain']"),
        ("widths", 3, "widths must be tuple, got 3"),
        ("widths", "12", "widths must be tuple, got '12'"),
        ("widths", [1, "2"], "widths[1] must be int, got '2'"),
        ("limit", "3", "limit must be int, got '3'"),
        ("mode", "c", "mode must be one of 'a', 'b', got 'c'"),
        ("inner", 3, "inner must be a table, got 3"),
        ("maybe", [1], "maybe must be a table, got [1]"),
        ("inner", {"depth": 1, "names": [1]}, "inner: names[0] must be str, got 1"),
        ("compile", "block", "compile must be bool or one of 'blocks', got 'block' (did you mean 'blocks'?)"),
        ("compile", 1, "compile must be bool or one of 'blocks', got 1"),
        pytest.param("rate", 10**400, "rate must be a number below 1.8e308", id="rate-10^400"),
        ("extra", [1], "extra must be dict, got [1]"),
        ("title", "a\nb", None),
    ],
)
def test_values_of_the_wrong_kind(key, value, expected):
    values = {"count": 1, key: value}
    if expected is None:
        assert getattr(from_mapping(Outer, values, where="test"), key) == value
    else:
        assert expected in refusal(values)


@pytest.mark.parametrize("value", [True, False, "blocks"])
def test_every_member_of_a_union_is_accepted(value):
    assert from_mapping(Outer, {"count": 1, "compile": value}, where="test").compile is value
    settings = {"steps": 1, "batch_size": 1, "lr": 1e-3, "compile": value}
    assert from_mapping(FitConfig, settings, where="test").compile is value


def test_the_dataclass_checks_its_values():
    assert refusal({"count": -1}) == "Outer: count must be 0 or more, got -1"


def test_a_word_of_a_name_is_suggested_before_what_is_spelt_alike():
    names = ["sandal", "lesser panda", "giant panda", "panpipe"]
    assert suggest("panda", names) == " (did you mean 'lesser panda' or 'giant panda'?)"
    assert suggest("Pandas", names) == " (did you mean 'lesser panda' or 'giant panda'?)"
    assert suggest("sandle", names) == " (did you mean 'sandal'?)"
    assert suggest("wire", ["barbed-wire-fence", "wine"]) == " (did you mean 'barbed-wire-fence'?)"
    assert suggest("copter", ["helicopterish thing"]) == " (did you mean 'helicopterish thing'?)"


def test_suggestions():
    assert suggest("planet", ["planets", "sprouts"]) == " (did you mean 'planets'?)"
    assert suggest("PLANETS", ["Planets"]) == " (did you mean 'Planets'?)"
    assert suggest("qqqq", ["planets"]) == ""
    assert suggest("nowhere", ["sweep"]) == ""
    assert suggest("--clases", ["--classes", "--labels", "--seed"]) == " (did you mean '--classes'?)"
    assert suggest("aaa", ["aab", "aac", "aad", "aae"], most=2).count("'") == 4


def test_settings_are_flattened_to_dotted_names():
    values = {"a": 1, "b": {"c": None, "d": {"e": [1, 2]}}, "empty": {}, "runs": [{"x": 1}, {"y": {"z": []}}]}
    assert list(flatten(values)) == [
        ("a", 1), ("b.c", None), ("b.d.e", [1, 2]), ("runs.0.x", 1), ("runs.1.y.z", []),
    ]  # fmt: skip
    assert list(flatten({"mixed": [{"x": 1}, 2]})) == [("mixed", [{"x": 1}, 2])]


@pytest.mark.parametrize(
    ("before", "now", "difference"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "a": 1}, None),
        ({"a": 1, "b": 2}, {"b": 3, "a": 2}, ("b", "2", "3")),
        ({"b": {"c": "x"}}, {"b": {"c": "y"}}, ("b.c", "'x'", "'y'")),
        ({}, {"b": {"c": 1}}, ("b.c", "not set", "1")),
        ({"b": {"c": 1}}, {}, ("b.c", "1", "not set")),
        ({"seeds": [0, 1]}, {"seeds": [0]}, ("seeds", "[0, 1]", "[0]")),
        ({"runs": [{"x": 1}]}, {"runs": [{"x": 1}, {"x": 2}]}, ("runs.1.x", "not set", "2")),
        ({"seeds": []}, {}, ("seeds", "[]", "not set")),
        ({"a": None}, {}, None),
        ({"free": 1, "b": {"free": 1}}, {"free": 2, "b": {"free": 2}}, ("b.free", "1", "2")),
    ],
)
def test_the_first_difference_of_two_settings(before, now, difference):
    assert first_difference(before, now, ignore={"free"}) == difference


def test_a_difference_as_text():
    assert str(Difference("fit.lr", "0.1", "0.2")) == "fit.lr 0.1, now it is 0.2"
