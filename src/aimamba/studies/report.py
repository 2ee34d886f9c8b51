"""What a study leaves for people: a table and a figure beside its results, made from them alone."""

from pathlib import Path

from aimamba.files import write_atomically
from aimamba.studies.figures import plot_figure
from aimamba.studies.results import Results
from aimamba.studies.tables import table

TABLE_FILE, FIGURE_FILE = "table.md", "figure.png"


def write_report(results: Results) -> tuple[Path, Path]:
    """Write ``table.md`` and ``figure.png`` beside the results, also of an unfinished study; say where they are.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    folder = results.path.parent
    text = table(results)
    write_atomically(folder / TABLE_FILE, lambda draft: draft.write_text(text, encoding="utf-8"))
    plot_figure(results, folder / FIGURE_FILE)
    return folder / TABLE_FILE, folder / FIGURE_FILE
