"""The report of a study: a table and a figure beside its results, made from the results alone."""

from pathlib import Path

from aimamba.files import write_atomically
from aimamba.studies.figures import write_figure
from aimamba.studies.results import Results
from aimamba.studies.tables import study_table

TABLE_FILE, FIGURE_FILE = "table.md", "figure.png"


def write_report(results: Results) -> tuple[Path, Path]:
    """Write ``table.md`` and ``figure.png`` beside the results, which may be unfinished.

    Returns:
        The paths of table and figure.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    folder = results.path.parent
    text = study_table(results)
    write_atomically(folder / TABLE_FILE, lambda draft: draft.write_text(text, encoding="utf-8"))
    write_figure(results, folder / FIGURE_FILE)
    return folder / TABLE_FILE, folder / FIGURE_FILE
