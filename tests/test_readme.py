"""The documentation does what it says: its commands and its Python run, its links lead somewhere.

Blocks marked ``sh`` and ``python`` run in order, each page in a folder of its own that looks like a clone after
``make demo``: tiny models under ``runs/``, class folders of images in ``photos/``. A block whose info string says
``no-test`` needs a download or a long time and is not run. Commands run as written, except for these:

* ``make TARGET`` is not run; the Makefile must have the target.
* ``git clone``, ``cd``, ``pip install`` and the activation of ``.venv`` are skipped.
* ``aimamba train`` gets ``QUICK`` flags at its end, which make the models and the training tiny.
* ``aimamba evaluate --model`` measures 10 samples, and sets of 6 avatars per class become sets of 2.
* ``aimamba sample --engine`` samples one class.
* ``tensorboard`` is not run; the folder must hold event files.

A ``toml`` block whose first line is a comment with a file's name is written to that file.
"""

import importlib.util
import re
import shlex
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "tests/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
GENERATED = ("benchmarks/results/*/*.md", "docs/studies/*/table.md")
SKIPPED = (["git", "clone"], ["cd"], ["pip", "install"], [".", ".venv/bin/activate"])
VQ = "--steps 2 --batch-size 4 --device cpu --set model.channels=8 --set model.z_channels=8"
AIM = (
    "--steps 2 --batch-size 4 --device cpu --set model.width=32 --set model.num_blocks=2 --set model.head_width=16 "
    "--set model.state_size=8 --set task.sheet_pictures=1 --set task.sheet_cfg_scale=1"
)
QUICK = {
    "avatars-tiny-vq": VQ,
    "avatars-tiny-aim": AIM,
    "fashion-mnist-vq": VQ,
    "fashion-mnist-aim": AIM,
    "photos-vq.toml": f"{VQ} --set task.perceptual_side=32",
    "photos-aim.toml": AIM,
    "vq-finetune": "--steps 2 --batch-size 4 --device cpu --set task.perceptual_side=32",
}
SMALLER = {"avatars-64:held-out:6": "avatars-64:held-out:2", "avatars-64:train:20": "avatars-64:train:2"}
LINE_LENGTH = 120
PLACEHOLDER = re.compile(r"\{\{|\b(?:TODO|TBD|FIXME|XXX)\b|lorem ipsum|<(?:insert|your)\b[^>]*>", re.IGNORECASE)
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"^# (\S+\.toml)\b")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and content of the blocks to run."""
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [(language, content) for language, info, content in found if "no-test" not in info.split()]


RUN = tuple(page for page in DOCUMENTS if blocks(page))


def anchors(page: Path) -> set[str]:
    """Return what a link into a page may name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def run_command(words: list[str]) -> None:
    from aimamba.cli import main

    if any(words[: len(known)] == known for known in SKIPPED):
        return
    if words[0] == "make":
        assert set(words[1:]) <= make_targets(), words
        return
    if words[0] == "tensorboard":
        assert words[1] == "--logdir"
        assert list(Path(words[2]).rglob("events.out.tfevents.*"))
        return
    assert words[0] == "aimamba", f"a command that this test does not know: {shlex.join(words)}"
    words = quick(words)
    status = main(words[1:])
    assert status == 0, f"{shlex.join(words)} ended with {status}"


def quick(words: list[str]) -> list[str]:
    """Return an ``aimamba`` command with the flags and sets that make it small."""
    words = [SMALLER.get(word, word) for word in words]
    match words[1]:
        case "train" if words[2] not in ("--list", "--show", "--settings"):
            return [*words, *shlex.split(QUICK[words[2]])]
        case "evaluate" if "--model" in words:
            return [*words, "-n", "10"]
        case "sample" if "--engine" in words:
            return [*words, "--classes", "planets"]
    return words


@pytest.fixture(scope="module")
def cache(make_cache) -> Path:
    """The cache folder of all pages: avatars and features of references are made once."""
    return make_cache()


@pytest.fixture
def clone(tmp_path, monkeypatch, cache, make_aim, make_vq) -> Path:
    """A folder like a clone after ``make demo``, which becomes the current one."""
    from aimamba import Pipeline
    from aimamba.data import STYLES, Avatars

    monkeypatch.setenv("AIMAMBA_CACHE", str(cache))
    folder = tmp_path / "clone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    tokenizer = make_vq(channel_mult=(1, 1, 2))  # down-sampling 4
    generator = make_aim(num_classes=len(STYLES), num_tokens=64)
    Pipeline(tokenizer, generator, STYLES).save_pretrained("runs/avatars-tiny-aim/model")
    tokenizer.save_pretrained("runs/avatars-tiny-vq/model")
    photos = Avatars(64, "train", 4, ("critters", "thumbs"))
    for index, label in enumerate(photos.labels):
        place = folder / "photos" / ("cats", "dogs")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos.image(index)).save(place / f"{index}.png")
    write_fashion_mnist(tmp_path / "data" / "fashion-mnist")
    monkeypatch.setenv("AIMAMBA_DATA", str(tmp_path / "data"))
    return folder


def write_fashion_mnist(folder: Path) -> None:
    """Noise in the format of the official files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        arrays = {"images-idx3": rng.integers(0, 256, (20, 28, 28), np.uint8), "labels-idx1": np.arange(20) % 10}
        for name, array in arrays.items():
            header = struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("page", RUN)
def test_commands_and_python_run_as_written(page, clone):
    for language, content in blocks(page):
        if language == "sh":
            for line in content.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    run_command(words)
        elif language == "toml" and (named := FILE.match(content)):
            Path(named[1]).write_text(content, encoding="utf-8")
        elif language == "python":
            exec(compile(content, page, "exec"), {"__name__": "__main__"})
    if page == "README.md":
        check_what_readme_promises()


def check_what_readme_promises() -> None:
    samples = {path.name for path in Path("my-avatars").iterdir()}
    assert samples == {"sheet.png", "settings.json"} | {
        f"{name}-seed{i}.png" for name in ("planets", "sprouts") for i in range(4)
    }
    assert len(list(Path("my-samples").glob("*-seed*.png"))) == 2 * 8
    run = {path.name for path in Path("runs/photos-aim").iterdir()}
    assert {"recipe.toml", "metrics.jsonl", "checkpoint.pt", "sheets", "model"} <= run


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_and_figures_lead_somewhere(page):
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(place), f"{page} links to {target}"


@pytest.mark.parametrize("page", DOCUMENTS)
def test_no_placeholder_is_left(page):
    assert not PLACEHOLDER.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    ["{{ version }}", "a\nTODO: measure", "FIXME", "takes TBD minutes", "XXX", "Lorem ipsum dolor", "<your name>"],
)
def test_the_placeholder_check_can_fail(text):
    assert PLACEHOLDER.search(text)


def long_lines(page: str) -> list[str]:
    """Return the lines of a page that are too long, without those which a study's table.md holds as well."""
    tables = ROOT.glob("docs/studies/*/table.md") if page == "docs/studies/README.md" else ()
    generated = {line for table in tables for line in table.read_text(encoding="utf-8").splitlines()}
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if len(line) > LINE_LENGTH and line not in generated]


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if not any(Path(page).match(g) for g in GENERATED)])
def test_lines_are_short(page):
    assert long_lines(page) == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md", "docs/speed.md"])
def test_source_files_that_are_named_exist(page):
    folders = ("src", "tests", "docs", "benchmarks")
    known = "\n".join(path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*"))
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`(?:python )?([\w/]+\.(?:py|cpp|h))\b", text)
    assert named, "the pattern finds no file"
    assert [name for name in named if not re.search(rf"/{re.escape(name)}$", known, re.MULTILINE)] == []


def section(page: str, heading: str) -> str:
    """Return the text below a heading, up to the next one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no section {heading!r}"
    return found[1]


@pytest.mark.parametrize(
    ("heading", "source"), [("Speed", "docs/speed.md"), ("The packaged weights", "docs/models/avatars-64.md")]
)
def test_numbers_of_readme_stand_on_the_page_that_says_how_they_were_measured(heading, source):
    rows = [row.strip("|").split("|")[1:] for row in section("README.md", heading).splitlines() if row.startswith("|")]
    numbers = {number for row in rows for cell in row for number in re.findall(r"\d[\d.,]*", cell)}
    measured = set(re.findall(r"\d[\d.,]*\d|\d", (ROOT / source).read_text(encoding="utf-8")))
    assert len(numbers) > 6
    assert numbers <= measured


@pytest.fixture(scope="module")
def import_graph() -> ModuleType:
    """The script that plots the import graph."""
    spec = importlib.util.spec_from_file_location("import_graph", ROOT / "docs/figures/import_graph.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_import_graph_has_no_upward_edge(import_graph):
    layers = import_graph.read_layers()
    edges, _ = import_graph.read_graph()
    assert ("pipeline", "generation") in edges
    assert {room for edge in edges for room in edge} <= {room for layer in layers for room in layer}
    assert import_graph.upward_edges(edges, layers) == []
    wrong = [("generation", "data"), ("models", "pipeline")]  # sideways and upward
    assert import_graph.upward_edges([*edges, *wrong], layers) == wrong


def test_the_figure_of_the_import_graph_is_up_to_date(import_graph, tmp_path):
    import_graph.main(tmp_path / "graph.png")
    imports = []
    for path in (tmp_path / "graph.png", ROOT / "docs/figures/import-graph.png"):
        with Image.open(path) as image:
            imports.append(image.info[import_graph.EDGES_KEY])
    assert imports[0] == imports[1], "make the figure again: python docs/figures/import_graph.py"


def test_every_toml_block_is_a_recipe(tmp_path):
    from aimamba.train.recipe import load_recipe

    recipes = [content for page in RUN for language, content in blocks(page) if language == "toml"]
    assert recipes
    for content in recipes:
        (tmp_path / "recipe.toml").write_text(content, encoding="utf-8")
        load_recipe(str(tmp_path / "recipe.toml"))


def test_presets_of_the_table_are_as_it_says():
    import torch

    from aimamba import AiM
    from aimamba.models import AIM_PRESETS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(aim-\w+)` \| (\d+) \| (\d+) \| [^|]+ \| ([\d,]+) \|", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(AIM_PRESETS)
    for name, blocks_, width, parameters in rows:
        with torch.device("meta"):
            model = AiM(AIM_PRESETS[name])
        counted = (str(model.config.num_blocks), str(model.config.width), f"{model.num_parameters():,}")
        assert (blocks_, width, parameters) == counted


def test_the_citation_is_of_this_version():
    from aimamba import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert {"message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}] - {citation['date-released']}" in changelog
