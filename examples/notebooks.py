"""Run the notebooks of this folder and keep their outputs: ``python examples/notebooks.py`` (``make notebooks``).

Jupyter is not needed: code cells run in order in this process. What a cell prints, the value of its last line and its
figures become its outputs, as in Jupyter. A test runs the same with smaller settings.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot

FOLDER = Path(__file__).resolve().parent
_PARAMETERS = "parameters"  # the tag of the cell whose names may be set from outside, as papermill has it
_DPI = 80


def read(path: Path) -> dict[str, Any]:
    """Return a notebook."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restore what a notebook changes for the whole process, and the next one would meet."""
    folder, grad, threads = Path.cwd(), torch.is_grad_enabled(), torch.get_num_threads()
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_grad_enabled(grad)
        torch.set_num_threads(threads)


@_restored()
def run(notebook: dict[str, Any], name: str, settings: Mapping[str, object] = {}) -> None:
    """Run a notebook and put the outputs into its cells.

    Args:
        notebook: As ``read`` returns it.
        name: For tracebacks.
        settings: Values for names that the cell tagged ``parameters`` sets.

    Raises:
        KeyError: A setting is not a parameter of the notebook.
    """
    matplotlib.use("Agg")
    pyplot.close("all")
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _execute("".join(cell["source"]), f"{name}, code cell {count}", names)
        if _PARAMETERS in cell["metadata"].get("tags", ()):
            if unknown := settings.keys() - names.keys():
                raise KeyError(f"{name} has no parameter {min(unknown)}")
            names.update(settings)
        cell["execution_count"] = count
        cell["outputs"] = [_shown(figure, None) for figure in _figures()]
        if text := printed.getvalue():
            cell["outputs"].insert(0, {"name": "stdout", "output_type": "stream", "text": _lines(text)})
        if value is not None:
            cell["outputs"].append(_shown(value, count))


def _execute(source: str, name: str, names: dict[str, Any]) -> object:
    """Run a cell and return the value of its last line, if that is an expression."""
    tree = ast.parse(source, name)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        exec(compile(tree, name, "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names)


def _figures() -> list[bytes]:
    """Return the open figures as PNGs, and close them."""
    pictures = []
    for number in pyplot.get_fignums():
        stream = io.BytesIO()
        pyplot.figure(number).savefig(stream, format="png", dpi=_DPI, bbox_inches="tight")
        pictures.append(stream.getvalue())
    pyplot.close("all")
    return pictures


def _shown(value: object, count: int | None) -> dict[str, Any]:
    """Return an output: a picture, or a value as text."""
    picture = value if isinstance(value, bytes) else getattr(value, "_repr_png_", lambda: None)()
    data: dict[str, Any] = {"text/plain": ["a picture"] if picture is not None else _lines(repr(value))}
    if picture is not None:
        data["image/png"] = base64.b64encode(picture).decode()
    kind = (
        {"output_type": "display_data"}
        if count is None
        else {"output_type": "execute_result", "execution_count": count}
    )
    return {"data": data, "metadata": {}, **kind}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Run all notebooks, or those that are named, and write them back."""
    for path in [Path(name).resolve() for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        notebook = read(path)
        run(notebook, path.name)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
