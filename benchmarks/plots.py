"""Plot the results. Needs matplotlib, which comes with ``aimamba[plots]``."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimamba.files import write_atomically
from benchmarks.report import name
from benchmarks.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Write ``sampling.png`` and ``growth.png`` for the sections that have results.

    Returns:
        Paths of the written files; empty if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return []
    plotters = {"sampling": _sampling, "growth": _growth}
    written = []
    for section, plot in plotters.items():
        if found := results.of(section):
            path = folder / f"{section}.png"
            figure = plot(found)
            write_atomically(path, lambda draft, figure=figure: _save(figure, draft))
            written.append(path)
    return written


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})


def _panels(count: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    figure = Figure(figsize=(5 * count, 4), dpi=_DPI, layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.25)
    return figure, panels


def _label(each: dict[str, Any]) -> str:
    return f"{name(each)}, {each['dtype']}"


def _sampling(found: list[dict[str, Any]]) -> "Figure":
    """Seconds per image as bars, the fastest on top, one panel per batch size; a red line marks each floor."""
    batches = sorted({each["batch"] for each in found})
    several = len({each["size"] for each in found}) > 1
    figure, panels = _panels(len(batches))
    figure.set_size_inches(6.5 * len(batches), 1.0 + 0.3 * max(len(_of(found, batch)) for batch in batches))
    for axes, batch in zip(panels, batches, strict=True):
        rows = sorted(_of(found, batch), key=lambda each: -each["seconds_per_picture"]["median"])
        heights, seconds = range(len(rows)), [each["seconds_per_picture"]["median"] for each in rows]
        ours = [each["subject"] == "aim" for each in rows]
        axes.barh(heights, seconds, color=["C0" if own else "C7" for own in ours], height=0.7)
        floors = [(height, each["floor"]["seconds_per_picture"]) for height, each in enumerate(rows) if "floor" in each]
        for height, floor in floors:
            axes.plot([floor, floor], [height - 0.35, height + 0.35], color="C3", linewidth=2)
        for height, taken in zip(heights, seconds, strict=True):
            axes.annotate(f" {taken:.3g}", (taken, height), va="center", fontsize="small")
        labels = [_label(each) + (f", {each['size']}" if several else "") for each in rows]
        axes.set_yticks(heights, labels, fontsize="small")
        axes.set_xlabel("seconds per guided image" + (" (red line: lower bound)" if floors else ""))
        axes.set_title(f"batch {batch}", fontsize="medium")
        axes.set_xlim(0, 1.12 * max(seconds))
    return figure


def _of(found: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    return [each for each in found if each["batch"] == batch]


def _growth(found: list[dict[str, Any]]) -> "Figure":
    """Milliseconds per token, one panel per batch size with several lengths, and the size of the state."""
    batches = sorted({each["batch"] for each in found})
    lengths = {batch: {each["tokens"] for each in _of(found, batch)} for batch in batches}
    batches = [batch for batch in batches if len(lengths[batch]) > 1] or batches[:1]
    figure, panels = _panels(len(batches) + 1)
    names, dtypes = (list(dict.fromkeys(each)) for each in (map(name, found), (each["dtype"] for each in found)))
    styles = dict(zip(dtypes, ("-", "--", ":"), strict=False))
    for axes, batch in zip(panels, batches, strict=False):
        _lines(axes, _of(found, batch), names, styles, lambda each: each["milliseconds_per_token"]["median"])
        _lengths(axes, found, "milliseconds per token")
        axes.set_title(f"batch {batch}, guided", fontsize="medium")
    _lines(panels[-1], _of(found, batches[0]), names, styles, lambda each: each["remembered_bytes"] / 1e6)
    _lengths(panels[-1], found, "state, MB per row")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small")
    return figure


def _lines(
    axes: "Axes",
    found: list[dict[str, Any]],
    names: list[str],
    styles: dict[str, str],
    value: Callable[[dict[str, Any]], float],
) -> None:
    """Plot a line for each subject and dtype; the colour shows the subject, the style the dtype."""
    for label, group in groupby(sorted(found, key=_label), _label):
        points = sorted((each["tokens"], value(each), each["dtype"], name(each)) for each in group)
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            styles[points[0][2]],
            color=f"C{names.index(points[0][3])}",
            marker="o",
            markersize=4,
            label=label,
        )


def _lengths(axes: "Axes", found: list[dict[str, Any]], what: str) -> None:
    """Label the lengths on a logarithmic axis; the other axis starts at 0."""
    tokens = sorted({each["tokens"] for each in found})
    axes.set(xscale="log", xlabel="tokens", ylabel=what, ylim=(0, None))
    axes.set_xticks(tokens, labels=[f"{count:,}" for count in tokens])
    axes.minorticks_off()
