"""The notebooks of ``examples/`` run, with small settings, and hold their outputs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
SMALL: dict[str, dict[str, object]] = {
    "quickstart": {"IMAGES": 1, "TEMPERATURES": [1.0]},
    "your_own_folder": {"PER_CLASS": 10, "TOKENIZER_STEPS": 2, "GENERATOR_STEPS": 2},
    "editing": {"VARIANTS": 1, "STEPS": 2, "HELD_OUT": 1},
    "how_aim_works": {"PER_CLASS": 1, "SCALES": [2.0], "SEEDS": 1},
}
LARGEST = 1_000_000  # bytes of a notebook with its pictures


@pytest.fixture(scope="module")
def notebooks() -> ModuleType:
    """The script that runs notebooks."""
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "examples/notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_notebook_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(SMALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, when matplotlib is given tensors
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(notebooks, name, make_cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # and back, when a notebook has gone elsewhere
    monkeypatch.setenv("AIMAMBA_CACHE", str(make_cache()))
    monkeypatch.setattr(notebooks, "_DPI", 20)
    notebook = notebooks.read(ROOT / f"examples/{name}.ipynb")
    kept = [[output["output_type"] for output in cell.get("outputs", ())] for cell in notebook["cells"]]
    notebooks.run(notebook, name, SMALL[name])
    made = [[output["output_type"] for output in cell.get("outputs", ())] for cell in notebook["cells"]]
    assert made == kept, "outputs are missing or old: make notebooks"


def test_a_notebook_leaves_the_next_one_nothing(notebooks, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    lines = (
        "import os, torch",
        "torch.set_grad_enabled(False)",
        "torch.set_num_threads(5)",
        "os.chdir('below')",
        "1 / 0",
    )
    cell = {"cell_type": "code", "source": ["\n".join(lines)], "metadata": {}}
    before = torch.is_grad_enabled(), torch.get_num_threads(), Path.cwd()
    with pytest.raises(ZeroDivisionError):
        notebooks.run({"cells": [cell]}, "one")
    assert (torch.is_grad_enabled(), torch.get_num_threads(), Path.cwd()) == before


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_small_and_was_run_in_order(notebooks, name):
    path = ROOT / f"examples/{name}.ipynb"
    assert path.stat().st_size < LARGEST
    notebook = notebooks.read(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"]) >= 3
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert str(ROOT) not in path.read_text(encoding="utf-8")
    assert "/tmp/" not in path.read_text(encoding="utf-8")
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def cells(*sources: str) -> dict[str, object]:
    """Return a notebook of code cells, the first of which has the parameters."""
    made = [{"cell_type": "code", "metadata": {}, "source": [source]} for source in sources]
    made[0]["metadata"] = {"tags": ["parameters"]}
    return {"cells": made}


def test_outputs_are_those_of_jupyter(notebooks):
    notebook = cells("N = 3", "print('a\\nb')\nN + 1", "x = N;\nx;", "from PIL import Image\nImage.new('RGB', (2, 2))")
    notebooks.run(notebook, "small", {"N": 5})
    outputs = [cell["outputs"] for cell in notebook["cells"]]
    assert outputs[0] == outputs[2] == []
    assert outputs[1][0] == {"name": "stdout", "output_type": "stream", "text": ["a\n", "b\n"]}
    assert outputs[1][1]["data"] == {"text/plain": ["6"]}
    assert outputs[3][0]["data"]["image/png"].startswith("iVBOR")


def test_a_cell_that_fails_and_an_unknown_setting_are_not_passed_over(notebooks):
    with pytest.raises(ZeroDivisionError):
        notebooks.run(cells("N = 1", "N / 0"), "small")
    with pytest.raises(KeyError, match="small has no parameter M"):
        notebooks.run(cells("N = 1"), "small", {"M": 1})
    assert "small" not in sys.modules
