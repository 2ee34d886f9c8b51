"""What may not be read or written is one line in every command."""

import json
import os
import shutil
import subprocess
import sys

import pytest

_DROP = "-dac_override,-dac_read_search"  # by which root may read and write everything
_AS_A_USER = ["setpriv", f"--inh-caps={_DROP}", f"--bounding-set={_DROP}"]

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="no such permissions there"),
    pytest.mark.skipif(
        hasattr(os, "getuid") and os.getuid() == 0 and shutil.which("setpriv") is None, reason="root may do everything"
    ),
]

_PROGRAM = """
import contextlib, io, json, sys
from aimamba.cli import main
for command in json.loads(sys.argv[1]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = main(command)
    assert status == 2, (command, status, err.getvalue())
    lines = [line for line in err.getvalue().splitlines() if line.startswith("aimamba: ")]
    print(lines[-1] if len(lines) == 1 else repr(err.getvalue()))
"""


def test_one_line(here, models, photos, trained):
    place = here / "place"
    (place / "open").mkdir(parents=True)
    for name in ("pipeline", "tokenizer"):
        shutil.copytree(models / name, place / name)
    for name in ("unreadable", "unlisted"):
        shutil.copytree(models / "pipeline", place / name)
    shutil.copytree(photos, place / "photos")
    shutil.copytree(photos, place / "secret")
    shutil.copy(trained / "vq.toml", place / "vq.toml")
    shutil.copy(trained / "vq.toml", place / "secret.toml")
    for path in ("unreadable/generator/model.safetensors", "unlisted/tokenizer/config.json", "secret", "secret.toml"):
        (place / path).chmod(0)
    place.chmod(0o555)
    expected = {
        ("info", "unreadable"): "unreadable/generator/model.safetensors: Permission denied",
        ("info", "unlisted"): "unlisted/tokenizer/config.json: Permission denied",
        ("sample", "--model", "unreadable", "--out", "open/new"): "Permission denied",
        ("sample", "--model", "pipeline", "--out", "new"): "is not permitted",
        ("convert", "pipeline", "--out", "new"): "is not permitted",
        ("convert", "unreadable", "--out", "open/new"): "Permission denied",
        ("encode", "tokenizer", "secret", "--out", "open/new"): "secret: cannot list the folder (Permission denied)",
        ("encode", "tokenizer", "photos", "--out", "new"): "is not permitted",
        ("reconstruct", "secret", "--model", "tokenizer", "--out", "open/new"): "secret: permission denied",
        ("evaluate", "secret", "--reference", "photos"): "secret: permission denied",
        ("evaluate-tokenizer", "tokenizer", "secret"): "secret: permission denied",
        ("train", "secret.toml"): "cannot read secret.toml: Permission denied",
        ("train", "vq.toml", "--data", "secret", "--out", "open/new"): "permission denied",
        ("train", "vq.toml", "--data", "photos", "--out", "new"): "is not permitted",
    }
    command = [*(_AS_A_USER if os.getuid() == 0 else []), sys.executable, "-c", _PROGRAM, json.dumps(list(expected))]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    place.chmod(0o755)
    (place / "secret").chmod(0o755)
    assert done.returncode == 0, done.stderr
    lines = zip(done.stdout.splitlines(), expected.items(), strict=True)
    assert [(command, line) for line, (command, said) in lines if said.lower() not in line.lower()] == []
