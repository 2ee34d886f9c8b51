"""The table of a study in Markdown, from its results alone."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from aimamba.studies.results import Results
from aimamba.studies.rows import (
    METRICS,
    PAPER_R,
    Row,
    against_reconstructions,
    known_metrics,
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

_SPEED_MARGIN = 0.1  # share by which speeds must differ to count as different
_MISSING = "-"
_BITS = {"right": "own caption", "wrong": "another's", "none": "none"}
_SHARES = {"attributes %": "accuracy", "binding %": "binding"}
_BOUNDS = {
    "ceiling": "as they are",
    "reconstructed": "as the tokenizer decodes them",
    "floor": "with captions of other images",
}


def study_table(results: Results) -> str:
    """Return the Markdown text of a study: what was run and where, the table, and notes on how to read it."""
    bodies = {
        "baseline": _baseline,
        "scaling": _scaling,
        "ablation": _ablation,
        "guidance": _guidance,
        "guidance-free": _guidance_free,
        "text": _text,
        "tokenizer": _tokenizer,
    }
    samples = [sample for run in results.runs.values() for sample in run.get("samples", [])]
    if not any("samples" in run for run in results.runs.values()):
        return f"{_head(results)}\n\nNo run with samples is finished yet.\n"
    parts = [_head(results), bodies[results.settings["recipe"]["kind"]](results), _notes(results, samples)]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose other columns are numbers; ``|`` is escaped."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    cells = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def mean_and_range(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    """Return the mean as text, with the range if there are several values, and ``-`` without values."""
    if not values:
        return _MISSING
    shown = [f"{value * factor:.{digits}f}" for value in (mean(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _shown(values: Sequence[float], key: str) -> str:
    return mean_and_range(values, METRICS[key].digits, METRICS[key].factor)


def _name(key: str, network_name: str) -> str:
    """Return the heading of a metric: distances with the network that they come from."""
    name = METRICS[key].name + (" %" if key == "recognition" else "")
    return f"{network_name} {name}" if key in ("frechet", "kid") else name


def _scaling(results: Results) -> str:
    found = variant_rows(results.settings, results.runs)
    parts = [_variants(found, learning_rate=True)]
    logs = [math.log10(row.parameters) for row in found]
    columns = {"held-out bits per token": [mean(row.bits()) for row in found]}
    for index, guidance in enumerate(found[0].guidances()):
        for key in ("frechet", "fid", "kid"):
            values = [mean(row.metric(key, index)) for row in found]
            if not all(map(math.isnan, values)):
                columns[f"{_name(key, found[0].network)}, guidance {guidance}"] = values
    lines = [[name, _correlation(logs, values)] for name, values in columns.items()]
    parts.append(markdown_table([f"Pearson's r with log10(parameters), {len(found)} models", "r"], lines))
    parts.append(
        f"The paper reports {PAPER_R} for the FID of its four models on ImageNet (148M to 1.3B), without a definition; "
        "its printed numbers have r = -0.987 with log10(parameters). A few models of one budget describe this range of "
        "sizes only."
    )
    return "\n\n".join(parts)


def _correlation(x: Sequence[float], y: Sequence[float]) -> str:
    r = pearson(x, y)
    return _MISSING if math.isnan(r) else f"{r:.4f}"


def _ablation(results: Results) -> str:
    return _variants(variant_rows(results.settings, results.runs), learning_rate=False)


def _text(results: Results) -> str:
    found = variant_rows(results.settings, results.runs)
    return "\n\n".join(_of_set(name, found) for name in set_names(found))


_OF_TOKENIZER = {  # key: heading, factor, digits
    "psnr": ("PSNR", 1.0, 2),
    "ssim": ("SSIM", 1.0, 3),
    "lpips": ("LPIPS", 1.0, 4),
    "frechet": ("Fréchet, reconstructions", 1.0, 1),
    "codes_used": ("codes used %", 100.0, 1),
    "perplexity": ("perplexity", 1.0, 0),
}


def _tokenizer(results: Results) -> str:
    found = variant_rows(results.settings, results.runs)
    guidances = list(enumerate(found[0].guidances()))
    header = ["tokenizer", "parameters", "codes", *(heading for heading, *_ in _OF_TOKENIZER.values())]
    header += ["bits a code", "bits an image", *(f"Fréchet, samples, guidance {guidance}" for _, guidance in guidances)]
    body = []
    for row in found:
        shape = row.runs[0]["tokenizer"]
        cells = [row.title, f"{shape['parameters']:,}", f"{shape['codes']:,}"]
        for key, (_, factor, digits) in _OF_TOKENIZER.items():
            cells.append(mean_and_range(row.of_tokenizer(key), digits, factor))
        cells.append(mean_and_range(row.bits(), 3))
        cells.append(mean_and_range(row.bits_of_image(), 1))
        cells += [mean_and_range(row.metric("frechet", index), 1) for index, _ in guidances]
        body.append(cells)
    return markdown_table(header, body)


def _of_set(name: str, found: Sequence[Row]) -> str:
    """Return a table of what was measured on one set, and the bounds of what is read on samples."""
    header = ["model", "parameters", *(f"bits, {what}" for what in _BITS.values())]
    guidances = list(enumerate(found[0].guidances()))
    for what in (*_SHARES, f"{found[0].network} Fréchet"):
        header += [f"{what}, guidance {guidance}" for _, guidance in guidances]
    body = []
    for row in found:
        cells = [row.title, f"{row.parameters:,}"]
        cells += [mean_and_range(row.in_set(name, "bits_per_token", key), 3) for key in _BITS]
        for key in _SHARES.values():
            values = (row.of_samples(name, index, "attributes", key) for index, _ in guidances)
            cells += [mean_and_range(shares, 1, 100.0) for shares in values]
        cells += [mean_and_range(row.of_samples(name, index, "frechet"), 1) for index, _ in guidances]
        body.append(cells)
    measured = found[0].runs[0]["sets"][name]
    bounds = [
        f"{measured['attributes_of_real_images'][key]['accuracy']:.1%} of the attributes and "
        f"{measured['attributes_of_real_images'][key]['binding']:.1%} bound {where}"
        for key, where in _BOUNDS.items()
    ]
    return (
        f"### `{name}`\n\n{markdown_table(header, body)}\n\nOf {measured['images']:,} real images are read: "
        f"{', '.join(bounds)}."
    )


def _variants(found: Sequence[Row], *, learning_rate: bool) -> str:
    """Return a table with a line for every variant and guidance setting."""
    keys = known_metrics(sample for row in found for run in row.runs for sample in run["samples"])
    header = ["model", "parameters", "without embeddings", *["learning rate"] * learning_rate]
    body = []
    for row in found:
        first = row.runs[0]
        shape = [row.title, f"{row.parameters:,}", f"{first['non_embedding']:,}"]
        shape += [f"{first['lr']:g}"] * learning_rate
        for index, guidance in enumerate(row.guidances()):
            cells = [_shown(row.metric(key, index), key) for key in keys]
            body.append([*shape, mean_and_range(row.bits(), 4), guidance, *cells])
    return markdown_table(
        [*header, "held-out bits per token", "guidance", *(_name(key, found[0].network) for key in keys)], body
    )


def _guidance(results: Results) -> str:
    samples = [sample for run in results.runs.values() for sample in run["samples"]]
    keys = known_metrics(samples)
    body = [
        [guidance_label(sample), *(_shown(without_missing([metric(sample, key)]), key) for key in keys)]
        for sample in samples
    ]
    return markdown_table(["guidance", *(_name(key, network(samples)) for key in keys)], body)


def _guidance_free(results: Results) -> str:
    found, timed = titled_samples(results), speeds(results)
    keys = known_metrics(sample for _, sample in found)
    decoded = [key for key in keys if key != "recognition"]
    name = network(found[0][1:])
    header = ["model", "guidance", "rows", "images per second", *(_name(key, name) for key in keys)]
    header += [f"{_name(key, name)}, reconstructions" for key in decoded]
    body = []
    for title, sample in found:
        guidance = guidance_label(sample)
        costs = [without_missing([timed.get(guidance, {}).get(key)]) for key in ("rows", "pictures_per_second")]
        cells = [title, guidance, mean_and_range(costs[0], 2), mean_and_range(costs[1], 1)]
        for some, of in ((keys, sample), (decoded, against_reconstructions(sample))):
            cells += [_shown(without_missing([metric(of, key)]), key) for key in some]
        body.append(cells)
    return markdown_table(header, body)


def _baseline(results: Results) -> str:
    found = variant_rows(results.settings, results.runs)
    parts = []
    for size in dict.fromkeys(row.variant["size"] for row in found):
        rows = [row for row in found if row.variant["size"] == size]
        if len(rows) > 1:
            parts.append(f"### {size}\n\n{_comparison(rows, results.runs)}")
    return "\n\n".join([*parts, *_sweep(results)])


def _sweep(results: Results) -> Iterator[str]:
    """Yield the table of the learning rates tried, and a note if the best is at the edge."""
    titles = {known["name"]: known.get("title") or known["name"] for known in results.settings["recipe"]["variants"]}
    tries: dict[str, dict[float, float]] = {}  # bits of each rate
    body = []
    for run in results.runs.values():
        if "samples" not in run and "speed" not in run:
            bits = without_missing([run["held_out"]["bits_per_token"]])
            body.append([titles[run["variant"]], f"{run['lr']:g}", f"{run['pictures']:,}", mean_and_range(bits, 4)])
            tries.setdefault(run["variant"], {})[run["lr"]] = min(bits, default=math.inf)
    if body:
        yield "### Learning rates tried"
        yield markdown_table(["model", "learning rate", "images", "held-out bits per token"], body)
    for name, rates in tries.items():
        best = min(rates, key=rates.__getitem__)
        if best in (min(rates), max(rates)):
            text = f"{titles[name]}: the best rate, {best:g}, is at the edge of those tried"
            yield f"{text}; a better one may lie beyond."


def _comparison(rows: Sequence[Row], runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table that compares models of one size, quantity by quantity."""
    one, titles = rows[0], [row.title for row in rows]
    body = [["parameters", *(f"{row.parameters:,}" for row in rows), ""]]
    body.append(["learning rate", *(f"{row.runs[0]['lr']:g}" for row in rows), ""])

    def line(
        name: str, values: Sequence[Sequence[float]], better: str, digits: int, factor: float = 1.0, margin: float = 0.0
    ) -> None:
        cells = [mean_and_range(some, digits, factor) for some in values]
        body.append([name, *cells, _winner(titles, values, better, margin)])

    line("held-out bits per token", [row.bits() for row in rows], "lower", 4)
    for index, guidance in enumerate(one.guidances()):
        for key in known_metrics(sample for row in rows for run in row.runs for sample in run["samples"]):
            shown = METRICS[key]
            values = [row.metric(key, index) for row in rows]
            line(f"{_name(key, one.network)}, guidance {guidance}", values, shown.better, shown.digits, shown.factor)
    tokens = [run["speed"][0]["tokens"] for run in runs.values() if "speed" in run][:1]
    for length in tokens:
        rates = [[run["train_pictures_per_second"] * length for run in row.runs] for row in rows]
        line("training, tokens per second", rates, "higher", 0, margin=_SPEED_MARGIN)
    if all("train_peak_bytes" in run for row in rows for run in row.runs):
        peaks = [[run["train_peak_bytes"] / 2**20 for run in row.runs] for row in rows]
        line("training, peak GPU memory in MiB", peaks, "lower", 0)
    timed = [runs.get(f"speed-{row.variant['name']}", {}).get("speed", []) for row in rows]
    for each in zip(*timed, strict=False):
        name = f"sampling {each[0]['tokens']} tokens, batch {each[0]['batch']}, images per second"
        speeds = [[timing["pictures_per_second"]] for timing in each]
        line(name, speeds, "higher", 2, margin=_SPEED_MARGIN)
    for each in zip(*timed, strict=False):
        if each[0]["batch"] == timed[0][0]["batch"]:
            name = f"state of a row after {each[0]['tokens']} tokens, KiB"
            line(name, [[timing["state_bytes"] / 1024] for timing in each], "lower", 1)
    return markdown_table(["quantity", *titles, "better" if len(rows) == 2 else "best"], body)


def _winner(titles: Sequence[str], values: Sequence[Sequence[float]], better: str, margin: float = 0.0) -> str:
    """Return the title of the model that is better than all others in all runs, by more than the share ``margin``."""
    if not all(values):
        return _MISSING
    for index, (title, own) in enumerate(zip(titles, values, strict=True)):
        others = [value for place, those in enumerate(values) if place != index for value in those]
        low, high = (own, others) if better == "lower" else (others, own)
        if max(low) * (1 + margin) < min(high):
            return title
    return "equal" if len({value for those in values for value in those}) == 1 else "no clear difference"


def _head(results: Results) -> str:
    """Return a paragraph with the command, and machines, versions, commits, dates and duration of the runs."""
    settings, runs = results.settings, list(results.runs.values())
    trained = max([settings["budget"], *(run.get("pictures", 0) for run in runs)])  # at least one batch
    budget = f"{trained:,} images"
    if settings["recipe"]["kind"] == "guidance":
        what = f"every setting generates {budget} with the generator of {settings['model']}."
    elif settings["recipe"]["kind"] == "tokenizer":
        shared = settings["recipe"]["tokenizer"]
        images = max(round(shared["share"] * settings["budget"]), shared["fit"]["batch_size"])
        what = f"every generator trains on {budget}, and its tokenizer on {images:,}."
    elif settings["recipe"]["kind"] == "guidance-free":
        what = f"{settings['model']} as it is with every setting, and trained further on {budget}."
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
    seconds = sum(
        run.get("train_seconds", 0) + run.get("seconds", 0) + sum(s["seconds"] for s in run.get("samples", []))
        for run in runs
    )
    if runs:
        sentences.append(f"{len(runs)} runs, {seconds / 3600:.1f} hours of training, sampling and measuring")
        sentences[-1] += f", on {'; '.join(machines)}; {' to '.join(dict.fromkeys([days[0], days[-1]]))}"
        sentences[-1] += f"; commit {', '.join(commits)}." if commits else "."
    return " ".join(sentences)


def _notes(results: Results, samples: Sequence[Mapping[str, Any]]) -> str:
    judging, kind = results.settings["recipe"]["judging"], results.settings["recipe"]["kind"]
    if kind == "text":
        return (
            f"Bits per token of real images, without their class; {judging['samples']:,} samples of each set. A model "
            "of class names gets the style of the avatar in place of the caption, and that of another avatar in place "
            "of another's caption. Attributes: share of the mentioned values that are read on samples; binding: share "
            "of samples on which all that their caption mentions is read. Fréchet distances are by features of "
            f"{network(samples)} and larger for fewer images: compare them only within one table. Several seeds: mean "
            "(lowest to highest)."
        )
    if kind == "tokenizer":
        return (
            "PSNR, SSIM, LPIPS (VGG16) and codes used: the images of "
            f"`{results.settings['recipe']['tokenizer']['reference']}` and their reconstructions. Samples: "
            f"{judging['samples']:,} against `{judging['reference']}`. Fréchet distances are by features of "
            f"{network(samples)} and larger for fewer images: compare them only within one column. Bits a code are "
            "held-out ones of the generator, and depend on the number of codes. Several seeds: mean (lowest to "
            "highest)."
        )
    count = results.settings["budget"] if kind == "guidance" else judging["samples"]
    notes = [
        f"Distances compare {count:,} samples of a model with `{judging['reference']}` by features of "
        f"{network(samples)}. Fréchet distances are larger for fewer images: compare them only within this table."
    ]
    if kind == "guidance-free":
        batch = max(results.settings["recipe"]["speed"]["batches"])
        notes.append(
            "Reconstructions: the same against what the tokenizer makes of these images, which no sample can surpass. "
            "Rows: of a decoding step for an image, on average. Images per second: generated and decoded "
            f"{batch} at once, the fastest of several times; of one thread on a CPU, by its processor time. "
            "Fine-tuning does not change them."
        )
    elif kind != "guidance":
        notes.append("Several seeds: mean (lowest to highest).")
    if kind == "baseline":
        two = len({variant["family"] for variant in results.settings["recipe"]["variants"]}) == 2
        rank, those = ("better", "the other's") if two else ("best", "the others'")
        notes.append(
            f"A model counts as {rank} if each of its runs is better than all of {those}; speeds must differ by "
            "more than 10 %. With a single run each, that may be chance."
        )
    return " ".join(notes)
