"""What ``make wheel`` builds holds all that an installed package needs."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from aimamba import __version__

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "aimamba"
NEEDED = {
    "py.typed",
    "assets/avatars-64/generator/model.safetensors",
    "assets/avatars-64/tokenizer/model.safetensors",
    "assets/avatars-64-text/generator/model.safetensors",
    "assets/avatars-64-text/tokenizer/model.safetensors",
    "assets/avatars-64-text/vocabulary.json",
    "assets/emoji-64/generator/model.safetensors",
    "assets/emoji-64/tokenizer/model.safetensors",
    "assets/emoji-64/vocabulary.json",
    "assets/imagenet_classes.txt",
    "recipes/avatars-tiny-vq.toml",
    "recipes/studies/scaling.toml",
    "ops/mixer/native/step.cpp",
    "ops/native/simd.h",
}
LEFT_OUT = {".ci/run", ".gitignore"}


def in_source() -> set[str]:
    """Return the paths of all files of the package, relative to it."""
    files = (path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(SOURCE).as_posix() for path in files}


def test_the_wheel_holds_every_file_of_the_package_its_command_and_its_licence(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    [wheel] = map(Path, WheelBuilder(str(ROOT)).build(directory=str(tmp_path)))
    assert wheel.name == f"aimamba-{__version__}-py3-none-any.whl"
    info = f"aimamba-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {"aimamba", info}
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "aimamba = aimamba.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    packed = {name.removeprefix("aimamba/") for name in names if name.startswith("aimamba/")}
    assert packed == in_source()
    assert packed >= NEEDED


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_source_distribution_holds_what_the_repository_holds():
    from hatchling.builders.sdist import SdistBuilder

    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    packed = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    packed |= {"pyproject.toml"}  # which the builder writes by itself
    assert packed == {name for name in listed if (ROOT / name).is_file() and name not in LEFT_OUT}
