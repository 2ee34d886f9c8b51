import math
import tomllib
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimamba.config import to_mapping
from aimamba.errors import CheckpointError, ConfigError
from aimamba.models import AIM_PRESETS
from aimamba.train.recipe import check_trained, load_recipe, recipe_names
from aimamba.train.stages import resolved
from aimamba.train.toml import read_toml, to_toml
from refusals import one_line_error

DATA = """[data]
source = "avatars:planets"
per_class = 20
"""
TEXT = """
stage = "generator"
description = "a test"

[data]
source = "avatars:planets"
per_class = 20

[model]
preset = "aim-b"
num_blocks = 2

[fit]
steps = 10
batch_size = 4
lr = 1
betas = [0.8, 0.9]

[task]
label_dropout = 0.1
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(TEXT)
    return str(file)


def test_a_recipe_is_read_over_the_defaults(path):
    recipe = load_recipe(path)
    assert recipe.stage == "generator"
    assert (recipe.data.source, recipe.data.size, recipe.data.per_class) == ("avatars:planets", 64, 20)
    assert recipe.model == {"preset": "aim-b", "num_blocks": 2}
    assert (recipe.fit.steps, recipe.fit.lr, recipe.fit.betas, recipe.fit.schedule) == (10, 1.0, (0.8, 0.9), "cosine")
    assert recipe.task == {"label_dropout": 0.1}


def test_flags_go_over_the_recipe(path):
    recipe = load_recipe(
        path,
        {
            "fit.steps": "20", "fit.betas": "[0.5, 0.6]", "data.flip": "true", "data.source": "photos/cats",
            "model.num_blocks": 3, "task.tokenizer": "runs/vq", "fit.lr": 0.5, "description": 'say "x"\nsteps = 1',
        },
    )  # fmt: skip
    assert (recipe.fit.steps, recipe.fit.betas, recipe.fit.lr) == (20, (0.5, 0.6), 0.5)
    assert (recipe.data.flip, recipe.data.source) == (True, "photos/cats")
    assert recipe.model == {"preset": "aim-b", "num_blocks": 3}
    assert recipe.task == {"label_dropout": 0.1, "tokenizer": "runs/vq"}
    assert recipe.description == 'say "x"\nsteps = 1'


@pytest.mark.parametrize(
    ("overrides", "description"),
    [
        ({}, "ORIGINAL"),
        ({"fit.steps": "10", "data.source": '"avatars:planets"'}, "ORIGINAL"),  # as it is
        ({"fit.steps": 20, "fit.seed": 3}, "ORIGINAL; changed: fit.steps, fit.seed"),
        ({"data.source": "photos", "fit.steps": 20}, "a generator for photos at 64 pixels, from the recipe PATH"),
        ({"data.size": 32}, "a generator for avatars:planets at 32 pixels, from the recipe PATH"),
        ({"data.source": "photos", "description": "mine"}, "mine"),
    ],
)
def test_the_description_is_of_what_is_trained(path, overrides, description):
    expected = description.replace("ORIGINAL", "a test").replace("PATH", path)
    assert load_recipe(path, overrides).description == expected


def test_the_settings_of_the_model_are_settings_of_its_config(path):
    """The recipe itself does not check them, so a setting that no config has would go unnoticed above."""
    overrides = {"task.tokenizer": "vq"}
    resolved_model = resolved(to_mapping(load_recipe(path, {**overrides, "model.num_blocks": "3"})))["model"]
    preset = to_mapping(AIM_PRESETS["aim-b"])
    assert resolved_model == {name: preset[name] for name in resolved_model} | {"num_blocks": 3}
    with pytest.raises(ConfigError, match=r"unknown key 'num_layers'"):
        resolved(to_mapping(load_recipe(path, {**overrides, "model.num_layers": "3"})))


def test_text_that_only_looks_like_toml_stays_text(path):
    recipe = load_recipe(path, {"task.day": "2024-01-01", "task.two": "1\nother = 2", "task.table": "{a = 1}"})
    assert recipe.task == {
        "label_dropout": 0.1, "day": "2024-01-01", "two": "1\nother = 2", "table": "{a = 1}",
    }  # fmt: skip


def test_flags_reach_tables_in_tables(path):
    recipe = load_recipe(path, {"model.text.ngrams": "64", "model.text.reach": "prefix"})
    assert recipe.model == {"preset": "aim-b", "num_blocks": 2, "text": {"ngrams": 64, "reach": "prefix"}}
    assert recipe.description == "a test; changed: model.text.ngrams, model.text.reach"


def test_a_section_may_come_from_flags_alone(tmp_path):
    file = tmp_path / "bare.toml"
    file.write_text('stage = "tokenizer"\n[fit]\nsteps = 1\nbatch_size = 1\nlr = 0.1\n')
    assert load_recipe(str(file), {"data.size": 32}).data.size == 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"fit.stepps": 1}, r"unknown setting 'fit\.stepps' \(did you mean 'fit\.steps'"),
        ({"steps": 1}, r"unknown setting 'steps' \(did you mean 'fit\.steps'"),
        ({"fit": 1}, r"unknown setting 'fit'"),
        ({"model": 1}, r"unknown setting 'model'"),
        ({"model.num_blocks.x": 1}, r"setting 'model\.num_blocks\.x': model\.num_blocks is not a table of settings"),
        ({"fit.steps": "many"}, r"mine\.toml: fit: steps must be int, got 'many'"),
        ({"fit.steps": 0}, r"fit\.steps must be at least 1, got 0"),
        ({"data.size": -1}, r"data\.size must not be negative, got -1"),
        ({"data.crop": "centre"}, r"crop must be one of 'center', 'random', got 'centre' \(did you mean 'center'"),
        ({"stage": "both"}, r"stage must be one of 'tokenizer', 'generator'"),
    ],
)
def test_wrong_flags_are_named(path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps = 10", "stepps = 10"), r"fit: unknown key 'stepps' \(did you mean 'steps'"),
        (("[task]", "[tasks]"), r"unknown key 'tasks' \(did you mean 'task'"),
        (("lr = 1\n", ""), r"key 'lr' is missing"),
        (("[fit]", "[fit"), "is not valid TOML"),
        (("[data]", "[fat]"), r"unknown key 'fat'"),
        ((DATA, "data = 3\n"), r"data must be a table, got 3"),
        (('[data]\nsource = "avatars:planets"', "[data]\nsource = 7"), r"data: source must be str, got 7"),
    ],
)
def test_wrong_recipes_are_named(tmp_path, change, message):
    file = tmp_path / "wrong.toml"
    assert change[0] in TEXT
    file.write_text(TEXT.replace(*change))
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(str(file))
    assert "wrong.toml" in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        load_recipe(str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match=r"unknown recipe 'avatars-tiny-vk'.*; known recipes: .*; or give the path"):
        load_recipe("avatars-tiny-vk")


def test_a_packaged_recipe_is_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small-one.toml").write_text(TEXT)
    (tmp_path / "recipes" / "readme.md").write_text("")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert recipe_names() == ["small-one"]
    assert load_recipe("small-one").stage == "generator"
    with pytest.raises(ConfigError, match=r"unknown recipe 'small' \(did you mean 'small-one'\?\)"):
        load_recipe("small")


def test_every_packaged_recipe_is_listed_and_valid():
    folder = resources.files("aimamba").joinpath("recipes")
    files = [entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")]
    assert recipe_names() == sorted(files)
    assert {"avatars-tiny-vq", "avatars-tiny-aim"} <= set(files)
    for name in files:
        stage = "tokenizer" if {"vq", "decoder"} & set(name.split("-")) else "generator"
        assert load_recipe(name).stage == stage


def test_a_resolved_recipe_can_be_given_back(path, tmp_path):
    recipe = load_recipe(path, {"fit.steps": 7})
    again = tmp_path / "again.toml"
    again.write_text(to_toml(to_mapping(recipe)))
    assert load_recipe(str(again)) == recipe


text = st.text(st.characters(exclude_categories=("Cs",)))
scalars = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), text)
values = st.one_of(
    scalars, st.lists(scalars, max_size=3), st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2)
)
tables = st.dictionaries(text, values, max_size=4)


@given(st.dictionaries(text, st.one_of(values, tables), max_size=4))
def test_what_is_written_as_toml_is_read_back(mapping):
    assert tomllib.loads(to_toml(mapping)) == mapping


def test_toml_of_what_it_cannot_hold(tmp_path):
    assert math.isnan(tomllib.loads(to_toml({"x": math.nan}))["x"])
    assert to_toml({"x": (1, 2)}) == "x = [1, 2]\n"
    for value in (None, {1, 2}, [{"a": 1}]):
        with pytest.raises(TypeError, match="as a TOML value"):
            to_toml({"table": {"x": value}})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_toml(binary)


def test_models_that_recipes_make_are_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with one_line_error(CheckpointError, "the model runs/avatars-64-vq does not exist yet: .* with --init"):
        check_trained(load_recipe("avatars-64-decoder"))
    with one_line_error(CheckpointError, "the tokenizer runs/avatars-64-text-vq does not exist yet: .*--tokenizer"):
        check_trained(load_recipe("avatars-64-text"))
    with one_line_error(CheckpointError, "the model runs/avatars-64-split does not exist yet: make it first, or give"):
        check_trained(load_recipe("avatars-64-vq-split"))
    (tmp_path / "runs/avatars-64-vq").mkdir(parents=True)
    check_trained(load_recipe("avatars-64-decoder"))


@pytest.mark.parametrize("place", ["avatars-64-text", "hp-l33/aim-base", "vq_ds16_c2i.pt"])
def test_packaged_models_with_the_name_of_a_recipe_and_others_are_not_refused(place):
    check_trained(load_recipe("cca", {"init": place, "task.tokenizer": place}))
