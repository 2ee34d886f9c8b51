"""The results as figures. Needs matplotlib, which comes with ``aimamba[plots]``."""

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


def draw_plots(results: Results, folder: Path) -> list[Path]:
    """Write ``sampling.png`` and ``growth.png``, each where it has something to show.

    Returns:
        What was written; nothing where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return []
    drawers = {"sampling": _sampling, "growth": _growth}
    written = []
    for section, draw in drawers.items():
        if found := results.of(section):
            path = folder / f"{section}.png"
            figure = draw(found)
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


def _series(found: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Measurements of one subject, variant and dtype together, in alphabetical order."""

    def key(each: dict[str, Any]) -> str:
        return f"{name(each)}, {each['dtype']}"

    return [(label, list(group)) for label, group in groupby(sorted(found, key=key), key)]


def _sampling(found: list[dict[str, Any]]) -> "Figure":
    """Pictures a second against the batch; dotted, the floor of the same row of the table."""
    figure, [axes] = _panels(1)
    for label, group in _series(found):
        group.sort(key=lambda each: each["batch"])
        batches = [each["batch"] for each in group]
        rates = [1 / each["seconds_per_picture"]["median"] for each in group]
        [line] = axes.plot(batches, rates, "o-", markersize=4, label=label)
        if all("floor" in each for each in group) and label.startswith("AiM"):
            floors = [1 / each["floor"]["seconds_per_picture"] for each in group]
            axes.plot(batches, floors, ":", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="pictures at once", ylabel="pictures a second")
    axes.set_title("dotted: the floor", fontsize="medium")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _growth(found: list[dict[str, Any]]) -> "Figure":
    """Milliseconds a token, a panel for each batch, and what a row remembers."""
    batches = sorted({each["batch"] for each in found})
    figure, panels = _panels(len(batches) + 1)
    for axes, batch in zip(panels, batches, strict=False):
        for label, group in _series([each for each in found if each["batch"] == batch]):
            group.sort(key=lambda each: each["tokens"])
            medians = [each["milliseconds_per_token"]["median"] for each in group]
            axes.plot([each["tokens"] for each in group], medians, "o-", markersize=4, label=label)
        _lengths(axes, found, "milliseconds a token")
        axes.set_title(f"{batch} guided picture{'s' if batch > 1 else ''} at once", fontsize="medium")
        axes.legend(frameon=False, fontsize="small")
    memory = {(each["subject"], each["dtype"], each["tokens"]): each["remembered_bytes"] for each in found}
    for subject, dtype in sorted({key[:2] for key in memory}):
        points = sorted((key[2], size / 1e6) for key, size in memory.items() if key[:2] == (subject, dtype))
        panels[-1].plot(
            *zip(*points, strict=True),
            "o-",
            markersize=4,
            label=f"{name({'subject': subject, 'variant': ''})}, {dtype}",
        )
    _lengths(panels[-1], found, "MB remembered a row")
    panels[-1].legend(frameon=False, fontsize="small")
    return figure


def _lengths(axes: "Axes", found: list[dict[str, Any]], what: str) -> None:
    """Lengths of the sequence on a logarithmic axis, each with its number; the other axis begins at 0."""
    tokens = sorted({each["tokens"] for each in found})
    axes.set(xscale="log", xlabel="tokens", ylabel=what, ylim=(0, None))
    axes.set_xticks(tokens, labels=[f"{count:,}" for count in tokens])
    axes.minorticks_off()
