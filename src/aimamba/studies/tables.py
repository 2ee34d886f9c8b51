"""The table of a study in Markdown, from its results alone. It says no more than they carry."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from aimamba.studies.results import Results
from aimamba.studies.rows import (
    METRICS,
    PAPER_R,
    Row,
    guidance,
    known_metrics,
    mean,
    metric,
    network,
    numbers,
    pearson,
    rows,
)

_SPEED = 0.1  # what two speeds must differ by
_NOTHING = "-"


def table(results: Results) -> str:
    """What was run and where, the table, and notes on how to read it."""
    made = {"baseline": _baseline, "scaling": _scaling, "ablation": _ablation, "guidance": _guidance}
    drawn = [run for run in results.runs.values() if "samples" in run]
    if not drawn:
        return f"{_head(results)}\n\nNo run with samples is finished yet.\n"
    samples = [sample for run in drawn for sample in run["samples"]]
    parts = [_head(results), made[results.settings["recipe"]["kind"]](results), _notes(results, samples)]
    return "\n\n".join(parts) + "\n"


def grid(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    """The mean, and the range where there are several."""
    if not values:
        return _NOTHING
    shown = [f"{value * factor:.{digits}f}" for value in (mean(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _shown(values: Sequence[float], key: str) -> str:
    _, _, factor, digits = METRICS[key]
    return spread(values, digits, factor)


def _name(key: str, seen_by: str) -> str:
    """A metric as a heading: distances with the network that they come from."""
    name = METRICS[key][0] + (" %" if key == "recognition" else "")
    return f"{seen_by} {name}" if key in ("frechet", "kid") else name


def _scaling(results: Results) -> str:
    found = rows(results.settings, results.runs)
    parts = [_variants(found, learning_rate=True)]
    logs = [math.log10(row.parameters) for row in found]
    columns = {"held-out bits a token": [mean(row.bits()) for row in found]}
    for index, drawn in enumerate(found[0].guidances()):
        for key in ("frechet", "fid", "kid"):
            values = [mean(row.metric(key, index)) for row in found]
            if not all(map(math.isnan, values)):
                columns[f"{_name(key, found[0].network)}, guidance {drawn}"] = values
    lines = [[name, _correlation(logs, values)] for name, values in columns.items()]
    parts.append(grid([f"Pearson's r with log10(parameters), {len(found)} models", "r"], lines))
    parts.append(
        f"The paper gives {PAPER_R} for the FID of its four models on ImageNet (148M to 1.3B), without a definition; "
        "its printed numbers have r = -0.987 with log10(parameters). A few models of one budget show how this range of "
        "sizes behaves, and nothing beyond it."
    )
    return "\n\n".join(parts)


def _correlation(x: Sequence[float], y: Sequence[float]) -> str:
    r = pearson(x, y)
    return _NOTHING if math.isnan(r) else f"{r:.4f}"


def _ablation(results: Results) -> str:
    return _variants(rows(results.settings, results.runs), learning_rate=False)


def _variants(found: Sequence[Row], *, learning_rate: bool) -> str:
    """A line for every variant and setting of guidance."""
    keys = known_metrics(sample for row in found for run in row.runs for sample in run["samples"])
    header = ["model", "parameters", "without embeddings", *["learning rate"] * learning_rate]
    body = []
    for row in found:
        first = row.runs[0]
        shape = [row.title, f"{row.parameters:,}", f"{first['non_embedding']:,}"]
        shape += [f"{first['lr']:g}"] * learning_rate
        for index, drawn in enumerate(row.guidances()):
            cells = [_shown(row.metric(key, index), key) for key in keys]
            body.append([*shape, spread(row.bits(), 4), drawn, *cells])
    return grid([*header, "held-out bits a token", "guidance", *(_name(key, found[0].network) for key in keys)], body)


def _guidance(results: Results) -> str:
    samples = [sample for run in results.runs.values() for sample in run["samples"]]
    keys = known_metrics(samples)
    body = [[guidance(sample), *(_shown(numbers([metric(sample, key)]), key) for key in keys)] for sample in samples]
    return grid(["guidance", *(_name(key, network(samples)) for key in keys)], body)


def _baseline(results: Results) -> str:
    found = rows(results.settings, results.runs)
    parts = []
    for size in dict.fromkeys(row.variant["size"] for row in found):
        pair = [row for row in found if row.variant["size"] == size]
        if len(pair) == 2:
            parts.append(f"### {size}\n\n{_comparison(pair, results.runs)}")
    return "\n\n".join([*parts, *_sweep(results)])


def _sweep(results: Results) -> Iterator[str]:
    """The learning rates tried, and whether a better one may lie beyond them."""
    titles = {known["name"]: known.get("title") or known["name"] for known in results.settings["recipe"]["variants"]}
    tries: dict[str, dict[float, float]] = {}  # bits of each rate
    body = []
    for run in results.runs.values():
        if "samples" not in run and "speed" not in run:
            bits = numbers([run["held_out"]["bits_per_token"]])
            body.append([titles[run["variant"]], f"{run['lr']:g}", f"{run['pictures']:,}", spread(bits, 4)])
            tries.setdefault(run["variant"], {})[run["lr"]] = min(bits, default=math.inf)
    if body:
        yield "### Learning rates tried"
        yield grid(["model", "learning rate", "pictures", "held-out bits a token"], body)
    for name, rates in tries.items():
        best = min(rates, key=rates.__getitem__)
        if best in (min(rates), max(rates)):
            yield f"{titles[name]}: the best rate, {best:g}, is at the edge of those tried; a better may lie beyond."


def _comparison(pair: Sequence[Row], runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Two models of one size, quantity by quantity."""
    one, other = pair
    body = [["parameters", *(f"{row.parameters:,}" for row in pair), ""]]
    body.append(["learning rate", *(f"{row.runs[0]['lr']:g}" for row in pair), ""])

    def line(
        name: str, values: Sequence[Sequence[float]], better: str, digits: int, factor: float = 1.0, margin: float = 0.0
    ) -> None:
        cells = [spread(some, digits, factor) for some in values]
        body.append([name, *cells, _winner([row.title for row in pair], values, better, margin)])

    line("held-out bits a token", [row.bits() for row in pair], "lower", 4)
    for index, drawn in enumerate(one.guidances()):
        for key in known_metrics(sample for row in pair for run in row.runs for sample in run["samples"]):
            _, better, factor, digits = METRICS[key]
            values = [row.metric(key, index) for row in pair]
            line(f"{_name(key, one.network)}, guidance {drawn}", values, better, digits, factor)
    tokens = [run["speed"][0]["tokens"] for run in runs.values() if "speed" in run][:1]
    for length in tokens:
        rates = [[run["train_pictures_per_second"] * length for run in row.runs] for row in pair]
        line("training, tokens a second", rates, "higher", 0, margin=_SPEED)
    if all("train_peak_bytes" in run for row in pair for run in row.runs):
        peaks = [[run["train_peak_bytes"] / 2**20 for run in row.runs] for row in pair]
        line("training, peak MiB of the GPU", peaks, "lower", 0)
    timed = [runs.get(f"speed-{row.variant['name']}", {}).get("speed", []) for row in pair]
    for first, second in zip(*timed, strict=False):
        name = f"drawing {first['tokens']} tokens, batch {first['batch']}, images a second"
        line(name, [[drawn["pictures_per_second"]] for drawn in (first, second)], "higher", 2, margin=_SPEED)
    for first, second in zip(*timed, strict=False):
        if first["batch"] == timed[0][0]["batch"]:
            name = f"state of a row after {first['tokens']} tokens, KiB"
            line(name, [[drawn["state_bytes"] / 1024] for drawn in (first, second)], "lower", 1)
    return grid(["quantity", one.title, other.title, "better"], body)


def _winner(titles: Sequence[str], values: Sequence[Sequence[float]], better: str, margin: float = 0.0) -> str:
    """Who is better, if all runs of one are better than all of the other, by more than a share ``margin``."""
    one, other = values
    if not one or not other:
        return _NOTHING
    if max(one) * (1 + margin) < min(other) or min(one) > max(other) * (1 + margin):
        return titles[(max(one) < min(other)) != (better == "lower")]
    return "equal" if set(one) == set(other) and len(set(one)) == 1 else "not told apart"


def _head(results: Results) -> str:
    """The command, and the machines, versions, commits, days and hours of the runs."""
    settings, runs = results.settings, list(results.runs.values())
    budget = f"{settings['budget']:,} images"
    if settings["recipe"]["kind"] == "guidance":
        what = f"every setting draws {budget} with the generator of {settings['model']}."
    else:
        what = f"every run trains on {budget}, as codes of the tokenizer of {settings['model']}."
    sentences = [f"`aimamba study {results.study} --budget {settings['budget']}`: {what}"]
    places = [run["provenance"] for run in runs]
    machines = dict.fromkeys(
        f"{place.get('gpu', place['cpu'])}, {place['threads']} of {place['cores']} cores, torch {place['torch']}"
        for place in places
    )
    commits = dict.fromkeys(place["commit"] for place in places if place.get("commit"))
    days = sorted({place["date"][:10] for place in places})
    seconds = sum(run.get("train_seconds", 0) + sum(s["seconds"] for s in run.get("samples", [])) for run in runs)
    if runs:
        sentences.append(f"{len(runs)} runs, {seconds / 3600:.1f} hours of training, drawing and measuring")
        sentences[-1] += f", on {'; '.join(machines)}; {' to '.join(dict.fromkeys([days[0], days[-1]]))}"
        sentences[-1] += f"; commit {', '.join(commits)}." if commits else "."
    return " ".join(sentences)


def _notes(results: Results, samples: Sequence[Mapping[str, Any]]) -> str:
    judging, kind = results.settings["recipe"]["judging"], results.settings["recipe"]["kind"]
    count = results.settings["budget"] if kind == "guidance" else judging["samples"]
    notes = [
        f"Distances compare {count:,} images of a model with `{judging['reference']}` by features of "
        f"{network(samples)}. Fréchet distances grow when images are few: compare them inside this table alone."
    ]
    if kind != "guidance":
        notes.append("Several seeds: mean (lowest to highest).")
    if kind == "baseline":
        notes.append(
            "A model is better where each of its runs is better than all of the other's, and its speed by more than "
            "10 %; of a single run each, that may be chance."
        )
    return " ".join(notes)
