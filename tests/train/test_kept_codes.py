"""A run continues with the images that it has encoded, and says if the folder has others now."""

import json
import shutil

import pytest
from PIL import Image

from aimamba.errors import ConfigError
from aimamba.train.checkpoint import check_same_recipe
from aimamba.train.kept_codes import changed_since, describe, holds_codes_of, write_description
from aimamba.train.recipe import DataConfig
from aimamba.train.toml import to_toml
from refusals import one_line_error


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/cats/1.png", "photos/cats/2.png", "photos/dogs/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return DataConfig(source="photos", size=8)


@pytest.fixture
def kept(photos, tmp_path):
    folder = tmp_path / "codes"
    folder.mkdir()
    write_description(folder, describe(photos))
    return folder


@pytest.mark.parametrize("source", ["photos", "photos/", "./photos", "photos/cats/..", "link", "absolute"])
def test_the_same_folder_may_be_spelled_in_another_way(kept, photos, tmp_path, source):
    (tmp_path / "link").symlink_to("photos")
    source = str(tmp_path / "photos") if source == "absolute" else source
    now = DataConfig(source=source, size=8)
    assert holds_codes_of(kept, now)
    assert changed_since(kept, now) is None
    before, after = ({"init": each, "data": {"source": each, "size": 8}} for each in ("photos", source))
    check_same_recipe(to_toml(before), to_toml(after), tmp_path, dict)
    with one_line_error(ConfigError, r"a run with data\.size 8, now it is 16"):
        check_same_recipe(to_toml(before), to_toml(after | {"data": {"source": source, "size": 16}}), tmp_path, dict)


def test_other_images_are_refused(kept, tmp_path):
    shutil.copytree(tmp_path / "photos", tmp_path / "others")
    for other in (DataConfig(source="others", size=8), DataConfig(source="photos", size=16)):
        with one_line_error(ConfigError, "holds the codes of other images; remove it, or give another --out"):
            holds_codes_of(kept, other)
    with one_line_error(ConfigError, r"data\.source 'photos', now it is 'others'"):
        check_same_recipe('data.source = "photos"', 'data.source = "others"', tmp_path, dict)
    with one_line_error(ConfigError, r"data\.source 'avatars', now it is './avatars'"):
        check_same_recipe('data.source = "avatars"', 'data.source = "./avatars"', tmp_path, dict)


def test_what_was_added_or_removed_is_said(kept, photos, tmp_path):
    cat, new = tmp_path / "photos/cats/1.png", tmp_path / "photos/birds/1.png"
    new.parent.mkdir()
    shutil.copy(cat, new)
    said = "photos has changed since this run encoded it (3 image files then, {} now): the run goes on with the codes"
    assert changed_since(kept, photos).startswith(said.format(4))
    cat.unlink()
    assert changed_since(kept, photos).startswith(said.format(3)), "as many, but others"
    shutil.rmtree(tmp_path / "photos")
    assert changed_since(kept, photos) is None, "the images are not needed any more"


def test_a_run_of_an_earlier_version_and_a_named_set_have_no_listing(kept, photos, tmp_path):
    (kept / "images.json").unlink()
    assert changed_since(kept, photos) is None
    named = DataConfig(source="avatars", size=16)
    write_description(kept, describe(named))
    assert json.loads((kept / "images.json").read_text()) is None
    assert changed_since(kept, named) is None
