"""The report of a study: a table and a figure beside its results, made from the results alone."""

from pathlib import Path

from aimamba.files import write_atomically
from aimamba.studies.figures import write_figure
from aimamba.studies.results import Results, damaged
from aimamba.studies.tables import study_table

TABLE_FILE, FIGURE_FILE = "table.md", "figure.png"


def write_report(results: Results) -> list[Path]:
    """Write ``table.md`` and ``figure.png`` beside the results, which may be unfinished.

    Returns:
        The path of the table and, once a run with samples is finished, that of the figure.

    Raises:
        ConfigError: matplotlib is not installed, or the results are damaged.
    """
    table, figure = (results.path.parent / name for name in (TABLE_FILE, FIGURE_FILE))
    try:
        text = study_table(results)
        plotted = write_figure(results, figure)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise damaged(results.path, f"{type(error).__name__}: {error}") from error
    write_atomically(table, lambda draft: draft.write_text(text, encoding="utf-8"))
    return [table, figure] if plotted else [table]
