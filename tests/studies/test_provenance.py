"""Provenance of numbers."""

import subprocess

import torch

from aimamba.studies import provenance as module
from aimamba.studies.provenance import provenance


def test_of_this_machine():
    found = provenance(torch.device("cpu"))
    assert found["cpu"]
    assert found["cores"] >= found["threads"] == 1
    assert found["torch"] == torch.__version__


def test_the_commit_is_ours_or_none(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True
        )

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "other").write_text("")
    monkeypatch.setattr(module.aimamba, "__file__", str(package / "__init__.py"))
    assert "commit" not in provenance(torch.device("cpu")), "no clone"
    git("init", "-q")
    git("add", "other")
    git("commit", "-qm", "another's")
    assert "commit" not in provenance(torch.device("cpu")), "inside a clone of something else"
    git("add", "package")
    git("commit", "-qm", "ours")
    commit = provenance(torch.device("cpu"))["commit"]
    assert len(commit) == 40
    (package / "__init__.py").write_text("changed = True")
    assert provenance(torch.device("cpu"))["commit"] == f"{commit}-dirty"
