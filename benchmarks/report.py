"""Write the results as Markdown."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from aimamba.files import write_atomically
from benchmarks.results import Results

Found = dict[str, Any]

DISTURBED = 0.2
"""Number of cores that other programs may keep busy before a number is marked."""

NAMES = {
    "aim": "AiM",
    "attention": "our attention baseline",
    "official": "official AiM",
    "llamagen": "LlamaGen GPT",
    "vq-official": "official VQ module",
    "transformers": "transformers Mamba2",
}


def write_markdown(results: Results, folder: Path) -> None:
    """Write ``results.md``."""
    write_atomically(folder / "results.md", lambda path: path.write_text(markdown(results), encoding="utf-8"))


def markdown(results: Results) -> str:
    """Return all tables, with the machine they come from."""
    parts = [_machine(results)]
    tables: dict[str, Callable[[list[Found]], str]] = {
        "ceilings": _ceilings,
        "sampling": _sampling,
        "images": _images,
        "training": _training,
        "growth": _growth,
        "startup": _startup,
        "decoder": _decoder,
        "kernels": _kernels,
        "scan": _scan,
        "convolution": _convolution,
        "profile": _profile,
    }
    parts += [
        f"## {section.capitalize()}\n\n{make(results.of(section))}"
        for section, make in tables.items()
        if results.of(section)
    ]
    found = [marks(each) for each in results.measurements]
    if any("*" in each for each in found):
        parts.append("\\* estimated from steps at several positions of an image.")
    if any("+" in each for each in found):
        parts.append(f"+ other programs kept more than {DISTURBED} cores busy during the measurement.")
    if results.skipped:
        parts.append("## Not measured\n\n" + "\n".join(f"- {line}" for line in results.skipped))
    return "\n\n".join(parts) + "\n"


def name(found: Found) -> str:
    """Return the display name of subject and variant."""
    who = NAMES.get(found["subject"]) or str(found["subject"])
    return f"{who}, {found['variant']}" if found["variant"] else who


def marks(found: Found) -> str:
    """Return the marks of a number: ``*`` estimated, ``+`` disturbed by other programs."""
    estimated, disturbed = found.get("estimated", False), (found.get("disturbed_by_cores") or 0.0) > DISTURBED
    return (" \\*" if estimated else "") + (" +" if disturbed else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is aligned left and the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(results: Results) -> str:
    found = results.provenance
    where = found.get("gpu") or f"{found['cpu']}, {found['threads']} threads"
    return f"# Speed\n\n{where}; torch {found['torch']}, {found['date'][:10]}, commit {found.get('commit', 'unknown')}."


def _number(value: float | None, digits: int = 3) -> str:
    """Format with three significant digits and no exponent."""
    if value is None:
        return ""
    if abs(value) < 1:
        return f"{value:.{digits}g}"
    return f"{value:,.{max(0, digits - len(str(int(abs(value)))))}f}"


def _range(spread: Found, digits: int = 3) -> str:
    median, least, most = (_number(spread[key], digits) for key in ("median", "min", "max"))
    return median if spread["runs"] == 1 else f"{median} ({least} to {most})"


def _gib(count: float) -> str:
    return _number(count / 2**30)


def _ceilings(found: list[Found]) -> str:
    rows = []
    for each in found:
        best = max(each["rates"], key=each["rates"].get)
        if each["subject"] == "bandwidth":
            rows.append(["read bandwidth", f"{_number(each['best'] / 1e9)} GB/s{marks(each)}", best])
        else:
            rows.append(
                [f"matrix products, {each['dtype']}", f"{_number(each['best'] / 1e9)} Gop/s{marks(each)}", best]
            )
    return table(["ceiling", "best", "reached by"], rows)


def _size(each: Found, found: list[Found]) -> str:
    """The size, where a table holds several."""
    return f", {each['size']}" if len({other["size"] for other in found}) > 1 else ""


def _shape(each: Found, found: list[Found]) -> str:
    """The size and the batch, where a table holds several."""
    batch = f", batch {each['batch']}" if len({other["batch"] for other in found}) > 1 else ""
    return _size(each, found) + batch


def _sampling(found: list[Found]) -> str:
    head = ["", "dtype", "batch", "s/image", "ms/token", "floor, s/image", "times the floor", "peak GiB"]
    rows = []
    for each in sorted(found, key=lambda each: (each["size"], each["batch"], each["dtype"])):
        floor = each.get("floor")
        rows.append(
            [
                name(each) + _size(each, found),
                each["dtype"],
                str(each["batch"]),
                _range(each["seconds_per_picture"]) + marks(each),
                _range(each["milliseconds_per_token"]),
                f"{_number(floor['seconds_per_picture'])} ({floor['bound']})" if floor else "",
                _number(each.get("times_floor")),
                _gib(each["peak_bytes"]),
            ]
        )
    return table(head, rows)


def _images(found: list[Found]) -> str:
    """The whole pipeline; the best batch of a size is the row with the most images."""
    rows = [
        [
            name(each) + _size(each, found),
            each["dtype"],
            str(each["batch"]),
            _number(each["images_per_second"]) + marks(each),
            _range(each["seconds_per_picture"]),
            _gib(each["peak_bytes"]),
        ]
        for each in sorted(found, key=lambda each: (each["size"], each["dtype"], each["batch"]))
    ]
    return table(["decoder included", "dtype", "batch", "images/s", "s/image", "peak GiB"], rows)


def _training(found: list[Found]) -> str:
    head = ["", "dtype", "tokens/s", "share of the matrix rate", "with mixing", "times the floor", "peak GiB"]
    rows = [
        [
            name(each) + _shape(each, found),
            each["dtype"],
            _range(each["tokens_per_second"]) + marks(each),
            *(
                "" if each.get(share) is None else f"{each[share]:.0%}"
                for share in ("matrix_share", "matrix_share_with_mixing")
            ),
            _number(each.get("times_floor")),
            _gib(each["peak_bytes"]),
        ]
        for each in sorted(found, key=lambda each: each["dtype"])
    ]
    return table(head, rows)


def _growth(found: list[Found]) -> str:
    head = ["", "dtype", "batch", "tokens", "ms/token", "times the floor", "state, MB per row"]
    rows = [
        [
            name(each),
            each["dtype"],
            str(each["batch"]),
            f"{each['tokens']:,}",
            _range(each["milliseconds_per_token"]) + marks(each),
            _number(each.get("times_floor")),
            _number(each["remembered_bytes"] / 1e6),
        ]
        for each in sorted(found, key=lambda each: (each["batch"], each["dtype"], name(each), each["tokens"]))
    ]
    return table(head, rows)


def _startup(found: list[Found]) -> str:
    what = {"import": "import aimamba", "load": "load AiM's weights"}
    rows = [[f"{what[each['subject']]}, {each['dtype']}", _number(each["seconds"]) + marks(each)] for each in found]
    return table(["", "s"], rows)


def _decoder(found: list[Found]) -> str:
    rows = [
        [
            name(each),
            each["dtype"],
            str(each["batch"]),
            _range(each["seconds_per_picture"]) + marks(each),
            _gib(each["peak_bytes"]),
        ]
        for each in sorted(found, key=lambda each: (each["batch"], each["dtype"], each["subject"]))
    ]
    return table(["", "dtype", "batch", "s/image", "peak GiB"], rows)


def _kernels(found: list[Found]) -> str:
    """The fastest layout of each kernel; copies of memory set the scale."""
    rows = [
        ["copy", "", "", "", "", f"{_number(each['bytes_per_second'] / 1e12)} TB/s", ""]
        for each in found
        if each["subject"] == "copy"
    ]
    for each, best in _fastest(found):
        share = best.get("share_of_bandwidth")
        rows.append(
            [
                best["kernel"],
                each["size"],
                str(best["rows"]),
                str(best.get("position", "")),
                _number(best["microseconds"]) + marks(each),
                "" if share is None else f"{share:.0%}",
                layout(best["launch"]),
            ]
        )
    return table(["kernel", "size", "rows", "position", "us", "share of a copy's rate", "fastest layout"], rows)


def _fastest(found: list[Found]) -> Iterator[tuple[Found, Found]]:
    """The fastest timing of each kernel, size, number of rows and position, with the measurement it comes from."""
    timings = [(each, piece) for each in found for piece in each.get("pieces", ()) if "microseconds" in piece]

    def key(timing: tuple[Found, Found]) -> tuple[str, str, int, int]:
        each, piece = timing
        return piece["kernel"], each["size"], piece["rows"], piece.get("position", 0)

    for _, group in groupby(sorted(timings, key=key), key):
        yield min(group, key=lambda timing: timing[1]["microseconds"])


def layout(launch: Any) -> str:
    """Return the display name of a launch layout."""
    return ", ".join(f"{key} {value}" for key, value in launch.items()) if isinstance(launch, dict) else str(launch)


def _scan(found: list[Found]) -> str:
    """Every backend, then the fastest layout of each kernel and chunk length."""
    rows = [
        [
            name(each),
            each["size"],
            each["dtype"],
            _number(statistics.median(each["forward_ms"])),
            _number(statistics.median(each["both_ms"])) + marks(each),
            _number(each["peak_bytes"] / 2**20),
            f"{max(each['off'].values()):.1e}",
        ]
        for each in found
        if "both_ms" in each
    ]
    parts = [table(["", "size", "dtype", "forward ms", "with backward ms", "peak MiB", "largest error"], rows)]
    rows = [
        [name(each), each["size"], each["dtype"], line["kernel"], str(line["chunk"]), milliseconds, layout_name]
        for each in found
        for line, milliseconds, layout_name in _fastest_scans(each)
    ]
    if rows:
        parts.append(table(["", "size", "dtype", "pass", "chunk", "ms", "fastest layout"], rows))
    return "\n\n".join(parts)


def _fastest_scans(each: Found) -> Iterator[tuple[Found, str, str]]:
    """The fastest layout of each pass and chunk length of one measurement."""
    lines = [line for line in each.get("layouts", ()) if "ms" in line]
    for _, group in groupby(lines, key=lambda line: (line["chunk"], line["kernel"])):
        best = min(group, key=lambda line: statistics.median(line["ms"]))
        yield best, _number(statistics.median(best["ms"])), layout(best.get("launch", ""))


def _convolution(found: list[Found]) -> str:
    rows = [
        [name(each), each["size"], each["dtype"], _range(each["milliseconds"]) + marks(each)]
        for each in sorted(found, key=lambda each: (each["size"], each["dtype"]))
    ]
    return table(["", "size", "dtype", "ms, forward and backward"], rows)


def _profile(found: list[Found]) -> str:
    """One table for each token or step."""
    parts = []
    for each in found:
        what = "a training step" if each["subject"] == "training" else "a token"
        title = f"{what} of {each['size']}, {each['dtype']}, batch {each['batch']}: {summary(each)}"
        rows = [
            [f"`{kernel_name(line['name'])}`", *(cell.strip() for cell in _profile_cells(line))]
            for line in each["kernels"]
        ]
        parts += [title[0].upper() + title[1:] + ".", table(["kernel", "us", "count", "share"], rows)]
    return "\n\n".join(parts)


def kernel_name(name: str, longest: int = 90) -> str:
    """Return a kernel's name without what its templates repeat, on one line."""
    short = " ".join(name.replace("void ", "").replace("at::native::", "").replace("`", "'").split())
    return (short if len(short) <= longest else short[: longest - 3] + "...").replace("|", "/")


def profiled(found: Found) -> list[str]:
    """Return a profile as lines of text, the longest kernels first; none for another measurement."""
    return [
        f"  {'  '.join(_profile_cells(line))}  {kernel_name(line['name'])}"
        for line in found.get("kernels", ())
        if "share" in line
    ]


def _profile_cells(line: Found) -> list[str]:
    return [f"{line['microseconds']:9.1f}", f"{line['count']:6g}", f"{line['share']:4.0%}"]


def summary(found: Found) -> str:
    """Return the most important number of a measurement, as text."""
    if "busy_milliseconds" in found:
        return (
            f"{_number(found['milliseconds'])} ms, of which kernels {_number(found['busy_milliseconds'])} ms in "
            f"{_number(found['launches'])} launches"
        )
    for key in (
        "images_per_second",
        "seconds_per_picture",
        "tokens_per_second",
        "milliseconds_per_token",
        "best",
        "seconds",
        "milliseconds",
    ):
        if key in found:
            value = found[key]["median"] if isinstance(found[key], dict) else found[key]
            about = "about " if found.get("estimated") else ""
            return f"{key.replace('picture', 'image').replace('_', ' ')} {about}{value:.4g}"
    if "both_ms" in found:
        forward, both = (statistics.median(found[key]) for key in ("forward_ms", "both_ms"))
        return f"forward {forward:.3f} ms, with backward {both:.3f} ms, error {max(found['off'].values()):.1e}"
    if "bytes_per_second" in found:
        return f"{found['bytes_per_second'] / 1e12:.3g} TB/s"
    timings: Sequence[Found] = found.get("pieces") or found.get("layouts") or ()
    failures = [each["failed"] for each in timings if "failed" in each]
    failed = f", {len(failures)} of them failed, the first with {failures[0]}" if failures else ""
    return f"{len(timings)} timings{failed}" if timings else "done"
