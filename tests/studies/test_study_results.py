"""``results.json`` is started, continued or refused."""

import json
import math

import pytest

from aimamba.errors import ConfigError
from aimamba.studies.results import Results

SETTINGS = {"budget": 8, "recipe": {"kind": "scaling", "seeds": (0, 1), "variants": [{"name": "a"}]}}
RUN = {"provenance": {"cpu": "Some CPU"}, "samples": []}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "results.json"


def test_what_is_added_is_there_again(path):
    results = Results.begin(path, "scaling", SETTINGS)
    results.add("one", {**RUN, "loss": math.nan, "list": (1, 2.5), "nested": {"best": math.inf}})
    for again in (Results.begin(path, "scaling", SETTINGS), Results.read(path, "scaling")):
        assert again.runs == {"one": {**RUN, "loss": None, "list": [1, 2.5], "nested": {"best": None}}}
        assert again.settings["recipe"]["seeds"] == [0, 1]
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]
    json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 9}, "holds runs with budget 8, now it is 9; set it back, or give another --out"),
        ({"recipe": {**SETTINGS["recipe"], "seeds": (0,)}}, r"recipe.seeds \[0, 1\], now it is \[0\]; set"),
        ({"recipe": {**SETTINGS["recipe"], "variants": [{"name": "b"}]}}, "recipe.variants.0.name 'a', now it is 'b'"),
        ({"new": True}, "holds runs with new not set, now it is True"),
    ],
)
def test_other_settings_are_refused(path, changes, message):
    Results.begin(path, "scaling", {**SETTINGS, "budget": 7})
    Results.begin(path, "scaling", SETTINGS).add("one", RUN)  # nothing was run yet, so nothing contradicts
    with pytest.raises(ConfigError, match=message):
        Results.begin(path, "scaling", {**SETTINGS, **changes})


@pytest.mark.parametrize("run", ["runs/a-seed-0", "a-seed-0/tokenizer"])
def test_settings_stay_once_a_run_has_begun(path, run):
    Results.begin(path, "scaling", SETTINGS)
    folder = path.parent / run
    folder.mkdir(parents=True)
    Results.begin(path, "scaling", {**SETTINGS, "budget": 7})  # nothing was trained yet
    (folder / "recipe.toml").touch()
    assert Results.begin(path, "scaling", {**SETTINGS, "budget": 7}).runs == {}
    with pytest.raises(ConfigError, match=f"deep/{run} holds a run with budget 7, now it is 8; set it back, or give"):
        Results.begin(path, "scaling", SETTINGS)


def test_runs_whose_settings_are_lost_are_not_continued(path):
    Results.begin(path, "scaling", SETTINGS).add("a-seed-0", RUN)
    folder = path.parent / "runs/a-seed-0"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").touch()
    path.unlink()
    with pytest.raises(ConfigError, match=f"{folder} holds a run, and {path} with its settings is missing; restore it"):
        Results.begin(path, "scaling", {**SETTINGS, "budget": 7})
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        '{"format": "aimamba study 0", "study": "scaling", "settings": {}, "runs": {}}',
        '{"format": "aimamba study 1", "study": "scaling", "settings": 1, "runs": {"a": {}}}',
        '{"format": "aimamba study 1", "study": "scaling", "settings": {}, "runs": 1}',
        '{"format": "aimamba study 1", "study": "ablation", "settings": {}, "runs": {}}',
    ],
)
def test_foreign_files_are_refused(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigError, match="give another --out"):
        Results.begin(path, "scaling", SETTINGS)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {}}, "settings without budget or recipe"),
        ({"settings": {"budget": 8, "recipe": 1}}, "settings without budget or recipe"),
        ({"settings": {**SETTINGS, "recipe": {**SETTINGS["recipe"], "kind": "scalin"}}}, "unknown kind 'scalin'"),
        ({"settings": {**SETTINGS, "recipe": {**SETTINGS["recipe"], "kind": []}}}, r"unknown kind \[\]"),
        ({"settings": {**SETTINGS, "recipe": {**SETTINGS["recipe"], "kind": "baseline"}}}, "no section 'sweep'"),
        ({"settings": {**SETTINGS, "recipe": {**SETTINGS["recipe"], "variants": []}}}, "a recipe without variants"),
        ({"settings": {**SETTINGS, "recipe": {**SETTINGS["recipe"], "variants": [{}]}}}, "a variant without a name"),
        ({"runs": {"one": {}}}, "the run 'one' lacks provenance or numbers"),
        ({"runs": {"one": {"provenance": {}}}}, "the run 'one' lacks provenance or numbers"),
        ({"runs": {"one": {**RUN, "held_out": 2.5}}}, "the run 'one' lacks provenance or numbers"),
        ({"runs": {"one": {**RUN, "held_out": {"loss": 2.5}}}}, "the run 'one' lacks provenance or numbers"),
        ({"runs": {"one": {**RUN, "held_out": {"bits_per_token": "x"}}}}, "the run 'one' lacks provenance or numbers"),
        ({"runs": {"one": RUN, "two": "lost"}}, "the run 'two' lacks provenance or numbers"),
    ],
)
def test_damaged_results_are_neither_continued_nor_reported(path, changes, message):
    content = {"format": "aimamba study 1", "study": "scaling", "settings": SETTINGS, "runs": {}, **changes}
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    for read in (lambda: Results.begin(path, "scaling", SETTINGS), lambda: Results.read(path, "scaling")):
        with pytest.raises(ConfigError, match=rf"results.json is not what `aimamba study` writes \({message}.*restore"):
            read()
