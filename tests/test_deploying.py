"""The container and the Space: their files exist, and their command is one that aimamba knows."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from aimamba.cli import COMMANDS
from aimamba.cli.arguments import Parser

ROOT = Path(__file__).parents[1]
FILES = ("Dockerfile", "huggingface-space/Dockerfile")
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # that the hub accepts


def instructions(file: str) -> list[tuple[str, str]]:
    """Return name and arguments of the instructions of a Dockerfile."""
    text = re.sub(r"^#.*\n", "", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in lines if line.strip()]


def command(file: str) -> list[str]:
    """Return what a container runs."""
    given = dict(instructions(file))
    return [*json.loads(given.get("ENTRYPOINT", "[]")), *json.loads(given["CMD"])]


@pytest.mark.parametrize("file", FILES)
def test_what_is_copied_exists_and_is_not_ignored(file):
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if file == "Dockerfile" else []
    copied = [words.split()[:-1] for name, words in instructions(file) if name == "COPY" and "--from" not in words]
    assert copied
    for source in (source for sources in copied for source in sources):
        if "*" in source:
            assert source == "aimamba-*.whl"  # make space puts it there
            continue
        assert (ROOT / file).parent.joinpath(source).exists(), source
        assert not ignored or f"!{source}" in ignored, source


@pytest.mark.parametrize("file", FILES)
def test_the_command_is_known(file):
    words = command(file)
    assert words[:2] == ["aimamba", "studio"]
    assert words[words.index("--port") + 1] == dict(instructions(file))["EXPOSE"] == "7860"
    assert words[1] in COMMANDS
    parser = Parser(prog="aimamba studio")
    importlib.import_module("aimamba.cli.studio").add_arguments(parser)
    assert parser.parse_args(words[2:]).host == "0.0.0.0"


@pytest.mark.parametrize("file", FILES)
def test_arguments_are_declared_and_the_user_is_not_root(file):
    given = instructions(file)
    declared = {words.partition("=")[0] for name, words in given if name == "ARG"}
    used = {name for _, words in given for name in re.findall(r"\$\{(\w+)\}", words)}
    assert used == declared
    assert dict(given)["USER"] == "1000"


def test_the_image_installs_the_pinned_versions():
    installs = [words for name, words in instructions("Dockerfile") if name == "RUN" and "pip install" in words]
    assert len(installs) == 2
    assert all("--constraint" in words for words in installs)


def test_the_extra_of_the_page_is_installed():
    assert dict(instructions("Dockerfile"))["ARG"] == "EXTRAS=studio"  # the last of its arguments
    assert any("[studio]" in words for _, words in instructions("huggingface-space/Dockerfile"))


def test_the_head_of_the_space_is_complete():
    _, head, text = (ROOT / "huggingface-space/README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(head)
    assert settings["sdk"] == "docker"
    assert str(settings["app_port"]) in shlex.join(command("huggingface-space/Dockerfile"))
    assert {settings["colorFrom"], settings["colorTo"]} <= COLOURS
    assert len(settings["short_description"]) <= 60
    assert settings["license"] == "mit"
    assert text.startswith("\n# AiM")
