"""The documentation site holds every page, and what it checks can fail."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
MADE_BY_STUDIES = "docs/studies/*/table.md"  # the tables stand in docs/studies/README.md


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The script that builds the site."""
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs/site/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_navigation_holds_every_page(site):
    pages = site.navigation()
    assert len(pages) == len(set(pages))
    found = {path.relative_to(ROOT) for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern)}
    expected = {path.as_posix() for path in found if not path.match(MADE_BY_STUDIES)}
    expected |= {f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}
    assert expected - set(pages) == set(), "add the page to nav in zensical.toml (docs/site/README.md says where)"


def test_all_pages_can_be_written_and_the_reference_is_whole(site, tmp_path):
    import aimamba
    from aimamba.cli import COMMANDS

    pages = site.navigation()
    site.stage(pages, tmp_path / "pages")
    assert all((tmp_path / "pages" / page).stat().st_size for page in pages)
    python = (tmp_path / "pages/docs/reference/python.md").read_text(encoding="utf-8")
    assert all(f"::: aimamba.{name}\n" in python for name in aimamba.__all__)
    commands = (tmp_path / "pages/docs/reference/commands.md").read_text(encoding="utf-8")
    assert all(f"usage: aimamba {name} " in commands for name in COMMANDS)
    assert (tmp_path / "pages/docs/figures/how-it-works.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a](b.md)", "page.md links to b.md, which is not in the navigation"),
        ("![a](missing.png)", "page.md links to missing.png, which does not exist"),
        ('<img src="missing.png">', "page.md links to missing.png, which does not exist"),
        ("`[a](b.md)`\n\n```cpp\n[a](b.md)\n```\n", None),
        ("[a](https://example.org/b.md) [b](#b) [c](c.txt)", None),
    ],
)
def test_a_link_to_nowhere_is_refused(site, tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(site, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    (tmp_path / "c.txt").touch()
    if message is None:
        site.stage(["page.md"], tmp_path / "out")
        assert (tmp_path / "out/page.md").read_text(encoding="utf-8") == text
    else:
        with pytest.raises(site.SiteError, match=message):
            site.stage(["page.md"], tmp_path / "out")


def test_a_missing_page_is_refused(site, tmp_path):
    with pytest.raises(site.SiteError, match=r"names docs/none\.md, which does not exist"):
        site.stage(["docs/none.md"], tmp_path)


def test_what_github_reads_otherwise_is_changed(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "ROOT", tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.toml").touch()
    text = "Text\n- one\n  - two [f](folder) [n](n.ipynb)\n\n```sh no-test\n  - kept\n```\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    (tmp_path / "n.ipynb").write_text('{"cells": [{"cell_type": "markdown", "source": ["# N"]}]}', encoding="utf-8")
    site.stage(["page.md", "n.md"], tmp_path / "out")
    written = (tmp_path / "out/page.md").read_text(encoding="utf-8")
    assert written == "Text\n\n- one\n    - two [f](folder/README.md) [n](n.md)\n\n```sh\n  - kept\n```\n"
    assert "- [a.toml](a.toml)" in (tmp_path / "out/folder/README.md").read_text(encoding="utf-8")
    assert (tmp_path / "out/n.md").read_text(encoding="utf-8").startswith("# N\n\n[Download this notebook](n.ipynb)")


def test_faults_of_a_built_site_are_found(site, tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html"></a><a href="#top"></a><a href="#no"></a><a href="https://example.org"></a>'
        '<script src="https://example.org/x.js"></script><img src="gone.png">',
        encoding="utf-8",
    )
    assert site.faults(tmp_path) == [
        "a.html loads https://example.org/x.js",
        "a.html leads to b.html, which does not exist",
        "a.html leads to #no, which has no such anchor",
        "a.html leads to gone.png, which does not exist",
    ]


def test_the_site_builds(site, monkeypatch, capfd):
    pytest.importorskip("zensical", reason="needs the extra docs")
    monkeypatch.setattr(sys, "argv", ["build.py"])
    site.main()
    assert "open build/site/index.html" in capfd.readouterr().out
