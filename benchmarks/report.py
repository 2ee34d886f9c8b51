"""The results as Markdown."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.results import Results

Found = dict[str, Any]

DISTURBED = 0.2
"""Cores that other programs may keep busy before a figure is marked."""

NAMES = {
    "aim": "AiM",
    "attention": "our attention baseline",
    "official": "official AiM",
    "llamagen": "LlamaGen GPT",
    "vq-official": "official VQ module",
    "transformers": "transformers Mamba2",
}


def markdown(results: Results) -> str:
    """All tables, under the machine they come from."""
    parts = [_machine(results)]
    tables: dict[str, Callable[[list[Found]], str]] = {
        "ceilings": _ceilings,
        "sampling": _sampling,
        "training": _training,
        "growth": _growth,
        "startup": _startup,
        "decoder": _decoder,
    }
    parts += [
        f"## {section.capitalize()}\n\n{make(results.of(section))}"
        for section, make in tables.items()
        if results.of(section)
    ]
    found = [marks(each) for each in results.measurements]
    if any("*" in each for each in found):
        parts.append("\\* estimated from steps at several places of an image.")
    if any("+" in each for each in found):
        parts.append(f"+ other programs kept more than {DISTURBED} cores busy meanwhile.")
    if results.skipped:
        parts.append("## Not measured\n\n" + "\n".join(f"- {line}" for line in results.skipped))
    return "\n\n".join(parts) + "\n"


def name(found: Found) -> str:
    """Subject and variant."""
    who = NAMES.get(found["subject"], found["subject"])
    return f"{who}, {found['variant']}" if found["variant"] else who


def marks(found: Found) -> str:
    """What to know about a figure: ``*`` estimated, ``+`` disturbed by other programs."""
    estimated, disturbed = found.get("estimated", False), (found.get("disturbed_by_cores") or 0.0) > DISTURBED
    return (" \\*" if estimated else "") + (" +" if disturbed else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(results: Results) -> str:
    found = results.provenance
    where = found.get("gpu") or f"{found['cpu']}, {found['threads']} threads"
    return f"# Speed\n\n{where}; torch {found['torch']}, {found['date'][:10]}, commit {found.get('commit', 'unknown')}."


def _number(value: float | None, digits: int = 3) -> str:
    """Three digits that count, without an exponent."""
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


def _sampling(found: list[Found]) -> str:
    head = ["", "dtype", "batch", "s an image", "ms a token", "floor, s an image", "times the floor", "peak GiB"]
    rows = []
    for each in sorted(found, key=lambda each: (each["batch"], each["dtype"])):
        floor = each.get("floor")
        rows.append(
            [
                name(each),
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


def _training(found: list[Found]) -> str:
    head = ["", "dtype", "tokens a second", "share of the matrix rate", "with mixing", "peak GiB"]
    rows = [
        [
            name(each),
            each["dtype"],
            _range(each["tokens_per_second"]) + marks(each),
            *(
                "" if each.get(share) is None else f"{each[share]:.0%}"
                for share in ("matrix_share", "matrix_share_with_mixing")
            ),
            _gib(each["peak_bytes"]),
        ]
        for each in sorted(found, key=lambda each: each["dtype"])
    ]
    return table(head, rows)


def _growth(found: list[Found]) -> str:
    head = ["", "dtype", "batch", "tokens", "ms a token", "times the floor", "MB remembered a row"]
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
    return table(["", "dtype", "batch", "s an image", "peak GiB"], rows)
