"""The table of docs/scale.md is what its command prints."""

from pathlib import Path

import pytest

from benchmarks.scale import GPUS, HEAD, SHARDS, rows

PAGE = Path(__file__).parents[2] / "docs/scale.md"


def table() -> list[str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(HEAD[0])
    assert lines[start + 1] == HEAD[1]
    return lines[start + 2 : start + 2 + len(SHARDS) * len(GPUS)]


def test_the_table_has_every_size_on_every_number_of_gpus():
    cells = [[cell.strip() for cell in row.strip("|").split("|")][:3] for row in table()]
    assert cells == [[name, str(gpus), str(SHARDS[name])] for name in SHARDS for gpus in GPUS]


@pytest.mark.parametrize(("name", "gpus"), [("aim-b", 8), ("aim-1b", 32)])
def test_a_row_is_what_the_command_prints(name, gpus):
    [row] = rows([name], [gpus], "h100-80gb")
    assert row in table(), "make the table again: python -m benchmarks.scale"
