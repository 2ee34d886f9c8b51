"""The figure of a study, from its results alone. Needs matplotlib, which ``aimamba[plots]`` installs."""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimamba.errors import ConfigError
from aimamba.files import write_atomically
from aimamba.studies.results import Results
from aimamba.studies.rows import (
    METRICS,
    PAPER_R,
    Row,
    against_reconstructions,
    mean,
    metric,
    network,
    pearson,
    set_names,
    speeds,
    titled_samples,
    variant_rows,
    without_missing,
)
from aimamba.studies.settings import guidance_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120


def require_matplotlib() -> None:
    """Check that figures can be plotted, before anything runs.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("the figure of a study needs matplotlib; install it with: pip install 'aimamba[plots]'")


def write_figure(results: Results, path: Path) -> bool:
    """Write the figure as a PNG file, once a run with samples is finished; return whether one is.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    plotters = {
        "baseline": _baseline,
        "scaling": _scaling,
        "ablation": _ablation,
        "guidance": _guidance,
        "guidance-free": _guidance_free,
        "text": _text,
        "tokenizer": _tokenizer,
    }
    if not any("samples" in run for run in results.runs.values()):
        return False
    figure = Figure(dpi=_DPI, layout="constrained")
    plotters[results.settings["recipe"]["kind"]](figure, results)
    write_atomically(path, lambda draft: figure.savefig(draft, format="png", metadata={"Software": None}))
    return True


def _panels(figure: "Figure", count: int, height: float = 3.6) -> "list[Axes]":
    figure.set_size_inches(4.4 * count, height)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.25)
    return list(panels)


def _points(axes: "Axes", found: list[Row], values: Callable[[Row], list[float]], label: str) -> None:
    """Plot means over parameters as a line, and every run as a point."""
    [line] = axes.plot([row.parameters for row in found], [mean(values(row)) for row in found], label=label)
    for row in found:
        runs = values(row)
        axes.plot([row.parameters] * len(runs), runs, "o", markersize=4, color=line.get_color())
    axes.set_xscale("log")
    axes.set_xlabel("parameters")


def _distance(samples: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return key and name of the Fréchet distance of the network that was used."""
    if any(metric(sample, "fid") is not None for sample in samples):
        return "fid", "FID"
    return "frechet", f"{_escaped(network(samples))} {METRICS['frechet'].name} distance"


def _escaped(text: str) -> str:
    """Return text of the user's, in which matplotlib would take what is between two ``$`` for a formula."""
    return text.replace("$", r"\$")


def _label(guidance: str) -> str:
    return "no guidance" if guidance == "none" else f"guidance {guidance}"


def _scaling(figure: "Figure", results: Results) -> None:
    found = variant_rows(results.settings, results.runs)
    bits, distance = _panels(figure, 2)
    _points(bits, found, Row.bits, "")
    bits.set_ylabel("held-out bits per token")
    key, name = _distance(found[0].runs[0]["samples"])
    logs = [math.log10(row.parameters) for row in found]
    bits.set_title(f"r = {pearson(logs, [mean(row.bits()) for row in found]):.3f}", fontsize="medium")
    for index, guidance in enumerate(found[0].guidances()):
        r = pearson(logs, [mean(row.metric(key, index)) for row in found])
        _points(distance, found, lambda row, index=index: row.metric(key, index), f"{_label(guidance)}, r = {r:.3f}")  # type: ignore[misc]
    distance.set_title(f"(FID in the paper: r = {PAPER_R})", fontsize="medium")
    distance.set_ylabel(name)
    distance.legend(frameon=False)


def _ablation(figure: "Figure", results: Results) -> None:
    found = variant_rows(results.settings, results.runs)
    bits, distance = _panels(figure, 2, 1.2 + 0.42 * len(found))
    places = list(range(len(found)))
    for place, row in zip(places, found, strict=True):
        bits.plot(row.bits(), [place] * len(row.bits()), "o", color="C0")
    bits.set_xlabel("held-out bits per token")
    key, name = _distance(found[0].runs[0]["samples"])
    for index, guidance in enumerate(found[0].guidances()):
        for place, row in zip(places, found, strict=True):
            values = row.metric(key, index)
            label = _label(guidance) if place == 0 else None
            distance.plot(values, [place] * len(values), "o", color=f"C{index}", label=label)
    distance.set_xlabel(name)
    distance.legend(frameon=False)
    _name_rows((bits, distance), found)


def _tokenizer(figure: "Figure", results: Results) -> None:
    found = variant_rows(results.settings, results.runs)
    psnr, distance, bits = panels = _panels(figure, 3, 1.4 + 0.42 * len(found))
    for place, row in enumerate(found):
        psnr.plot(row.of_tokenizer("psnr"), [place] * len(row.runs), "o", color="C0")
        label = None if place else "reconstructions"
        values = row.of_tokenizer("frechet")
        distance.plot(values, [place] * len(values), "s", color="C1", label=label)
        for index, guidance in enumerate(row.guidances()):
            values, label = row.metric("frechet", index), None if place else f"samples, {_label(guidance)}"
            distance.plot(values, [place] * len(values), "o", color=f"C{index + 2}", label=label)
        bits.plot(row.bits(), [place] * len(row.bits()), "o", color="C0", label=None if place else "of the generator")
        most = math.log2(row.runs[0]["tokenizer"]["codes"])
        bits.plot([most], [place], "|", color="grey", markersize=12, label=None if place else "of equal codes")
    psnr.set_xlabel("PSNR of reconstructions, dB")
    distance.set_xlabel(f"{_escaped(found[0].network)} Fréchet distance")
    bits.set_xlabel("bits a code")
    for axes in (distance, bits):
        axes.legend(frameon=False, fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=2)
    _name_rows(panels, found)


def _name_rows(panels: "Sequence[Axes]", found: list[Row]) -> None:
    """Give each model a line, and the lines their names in the first panel."""
    for number, axes in enumerate(panels):
        axes.set_yticks(range(len(found)), ["" if number else _escaped(row.title) for row in found])
        axes.set_ylim(len(found) - 0.5, -0.5)


def _text(figure: "Figure", results: Results) -> None:
    found = variant_rows(results.settings, results.runs)
    bits, *shares = panels = _panels(figure, 3, 1.8 + 0.42 * len(found))
    names = set_names(found)
    marks = dict(zip(names, ("o", "s", "^", "v") * len(names), strict=False))

    def points(axes: "Axes", values: Callable[[Row], list[float]], label: str, color: str, mark: str) -> None:
        for place, row in enumerate(found):
            runs, known = values(row), None if place else label
            axes.plot(runs, [place] * len(runs), mark, color=color, label=known, markersize=5, fillstyle="none")

    for number, (key, what) in enumerate((("right", "own caption"), ("wrong", "another's"), ("none", "none"))):
        points(bits, lambda row, key=key: row.in_set(names[0], "bits_per_token", key), what, f"C{number}", "o")  # type: ignore[misc]
    bits.set(xlabel=f"bits per token, {_escaped(names[0].rpartition(':')[2])}")
    for axes, key in zip(shares, ("accuracy", "binding"), strict=True):
        for name, mark in marks.items():
            for index, guidance in enumerate(found[0].guidances()):
                points(
                    axes,
                    lambda row, name=name, index=index, key=key: row.of_samples(name, index, "attributes", key),  # type: ignore[misc]
                    f"{_escaped(name.rpartition(':')[2])}, {_label(guidance)}",
                    f"C{index}",
                    mark,
                )
        bounds = found[0].runs[0]["sets"][names[0]]["attributes_of_real_images"]
        for bound, style in (("reconstructed", "--"), ("floor", ":")):
            axes.axvline(bounds[bound][key], linestyle=style, color="grey")
        axes.set_xlabel({"accuracy": "attributes as mentioned", "binding": "all of a caption at once"}[key])
    shares[0].set_title("dashed: reconstructions, dotted: captions of others", fontsize="small")
    for axes in panels[:2]:
        axes.legend(frameon=False, fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)
    _name_rows(panels, found)


def _baseline(figure: "Figure", results: Results) -> None:
    found = variant_rows(results.settings, results.runs)
    several = len({row.variant["size"] for row in found}) > 1
    bits, distance, state = _panels(figure, 3)
    key, name = _distance(found[0].runs[0]["samples"])
    for number, family in enumerate(dict.fromkeys(row.variant["family"] for row in found)):
        kind, color = [row for row in found if row.variant["family"] == family], f"C{number}"
        if several:
            _points(bits, kind, Row.bits, _escaped(family))
            _points(distance, kind, lambda row: row.metric(key, 0), _escaped(family))
        else:
            for axes, values in ((bits, kind[0].bits()), (distance, kind[0].metric(key, 0))):
                axes.plot(values, [number] * len(values), "o", color=color)
        for row, style in zip(kind, ("-", "--", ":", "-.") * len(kind), strict=False):
            speed = results.runs.get(f"speed-{row.variant['name']}", {}).get("speed", [])
            sizes = {line["tokens"]: line["state_bytes"] / 1024 for line in speed}
            label = _escaped(row.title)
            state.plot(list(sizes), list(sizes.values()), style, marker="o", markersize=4, color=color, label=label)
    labels = "held-out bits per token", f"{name}, {_label(found[0].guidances()[0])}"
    for axes, label in zip((bits, distance), labels, strict=True):
        axes.set(**{"ylabel" if several else "xlabel": label})
    if not several:
        _name_rows((bits, distance), found)
    state.set(xlabel="tokens", ylabel="state of a row, KiB")
    if any("speed" in run for run in results.runs.values()):
        state.set(xscale="log", yscale="log")
    for axes in (bits, distance, state):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)


def _guidance(figure: "Figure", results: Results) -> None:
    samples = [sample for run in results.runs.values() for sample in run["samples"]]
    key, title = _distance(samples)
    distance, shares = _panels(figure, 2)
    none = [sample for sample in samples if sample["sampling"]["cfg_scale"] == 1]
    schedules = dict.fromkeys(sample["sampling"]["cfg_schedule"] for sample in samples if sample not in none)
    for schedule in schedules or ["constant"]:
        shown = [*none, *(sample for sample in samples if sample["sampling"]["cfg_schedule"] == schedule)]
        shown = sorted({id(sample): sample for sample in shown}.values(), key=lambda s: s["sampling"]["cfg_scale"])
        scales = [sample["sampling"]["cfg_scale"] for sample in shown]
        values = without_missing(metric(sample, key) for sample in shown)
        distance.plot(scales, values, "o-", markersize=4, label=schedule)
        for name, style in (("precision", "o-"), ("recall", "s--")):
            values = without_missing(metric(sample, name) for sample in shown)
            color = distance.lines[-1].get_color()
            if len(values) == len(scales):
                shares.plot(scales, values, style, markersize=4, color=color, label=f"{name}, {schedule}")
    distance.set(xlabel="guidance scale", ylabel=title)
    shares.set(xlabel="guidance scale", ylabel="share")
    shares.set_ylim(0, 1.6 * shares.get_ylim()[1])  # room for the legend
    distance.legend(frameon=False)
    shares.legend(frameon=False, fontsize="small")


def _guidance_free(figure: "Figure", results: Results) -> None:
    found, timed = titled_samples(results), speeds(results)
    key, title = _distance([sample for _, sample in found])
    panels = _panels(figure, 3, 4.2)
    names = {key: f"{title} to reconstructions", "precision": "precision", "recall": "recall"}
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for model, sample in found:
        sampling = sample["sampling"]
        schedule = "interval" if "from" in guidance_label(sample) else sampling["cfg_schedule"]
        group = model if model != results.settings["model"] else schedule if sampling["cfg_scale"] != 1 else "none"
        label = "" if group in (model, "none") else guidance_label(sample).replace(schedule, "").strip()
        groups.setdefault(group, []).append((label, sample))
    for axes, (metric_key, name) in zip(panels, names.items(), strict=True):
        for number, (group, members) in enumerate(groups.items()):
            shown = [(label, metric(against_reconstructions(sample), metric_key), sample) for label, sample in members]
            for index, (label, value, sample) in enumerate(shown):
                rate = timed.get(guidance_label(sample), {}).get("pictures_per_second")
                if value is not None and rate is not None:
                    place = rate, value
                    known = _escaped(group) if index == 0 else None
                    mark, color = "osD^vP*X<>"[number % 10], f"C{number % 10}"
                    axes.plot(*place, mark, color=color, label=known, markersize=7, fillstyle="none")
                    axes.annotate(label, place, xytext=(4, 4), textcoords="offset points", fontsize="x-small")
        axes.set(xlabel="images per second", ylabel=name)
        axes.margins(0.18, 0.12)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(groups), frameon=False)
