"""The kernels of a decoding step as binaries for Hopper: nothing spills, and caches are read with wide loads."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from aimamba.models import AIM_PRESETS

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parents[2]

# Compiled in a separate process, because here the kernels are interpreted.
PROGRAM = """
import json
import re
from benchmarks.decoding_kernels import Step, dual, folded, head, in_proj, out_proj, sampling
from aimamba.models import AIM_PRESETS

def report(name, preset, rows, int8, binary, **more):
    copies = re.findall(r"cp\\.async\\.c[ag]\\.shared\\.global [^;]*?, 0x(\\w+)", binary.ptx)
    copies = [int(size, 16) for size in copies]
    early = re.findall(r"ld\\.global\\.L1::evict_first\\.L2::cache_hint\\.(?:v(\\d)\\.)?b(\\d+)", binary.ptx)
    loads = [int(count or 1) * int(bits) // 8 for count, bits in early]
    found = {"name": name, "preset": preset, "rows": rows, "int8": int8, "copies": copies, "loads": loads, **more}
    print(json.dumps(found | binary.usage._asdict()))

def order_of(binary):
    return re.findall(r"ld\\.global\\.L1::evict_first|bar\\.sync|st\\.global", binary.ptx)

for preset in AIM_PRESETS:
    for int8 in (False, True):
        for rows in (2, 32, 128):
            step = Step(preset, rows, int8=int8)
            if rows == 128 or preset == "aim-xl":
                launch, binary = dual(step)
                report("dual", preset, rows, int8, binary, launch=launch._asdict(), order=order_of(binary))
    if preset == "aim-xl":
        for int8 in (False, True):
            binary = folded(Step(preset, 128, int8=int8))[1]
            report("folded", preset, 128, int8, binary, order=order_of(binary))
    for rows in (2, 4):
        step = Step(preset, rows)
        for kernel in (in_proj, out_proj, head):
            report(kernel.__name__, preset, rows, False, kernel(step)[1])
for top_k in (False, True):
    report("sampling", "aim-xl", 128, False, sampling(Step("aim-xl", 128), top_k=top_k))
"""


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_nothing_spills(binaries):
    assert len(binaries) == len(AIM_PRESETS) * (2 + 6) + 4 + 2 + 2
    spilled = [(each["name"], each["preset"], each["rows"], each["stack"]) for each in binaries if each["stack"]]
    assert spilled == []


def test_many_rows_copy_the_cache_16_bytes_at_a_time_or_8_of_8_bit_numbers(binaries):
    """Every stage but the one that is added up copies B and x of a block of tokens ahead; the loop copies one more."""
    found = [each for each in binaries if each["name"] == "dual" and each["rows"] == 128]
    assert len(found) == 2 * len(AIM_PRESETS)
    for each in found:
        launch, threads = each["launch"], 32 * each["launch"]["warps"]
        B, x = launch["tokens"] * 128 * 2, launch["tokens"] * launch["heads"] * 64 * (1 if each["int8"] else 2)
        wide, half = (B, x) if each["int8"] else (B + x, 0)
        assert each["copies"].count(16) * 16 * threads == launch["stages"] * wide, each
        assert each["copies"].count(8) * 8 * threads == launch["stages"] * half, each


def test_fewer_rows_load_x_16_bytes_at_a_time(binaries):
    found = [each for each in binaries if each["name"] == "dual" and each["rows"] < 128]
    assert len(found) == 4
    assert all(each["loads"] and set(each["loads"]) == {16} for each in found)


def test_few_rows_leave_registers_for_the_next_kernel(binaries):
    """A program of 128 registers for each of 128 threads finds room beside one of the dual form."""
    (few,) = (each for each in binaries if each["name"] == "dual" and each["rows"] == 2 and not each["int8"])
    taken = few["registers"] * 32 * few["launch"]["warps"]
    assert taken + 128 * 128 <= 65536


def test_two_programs_of_fold_and_replay_share_a_multiprocessor(binaries):
    assert [each["warps"] for each in binaries if each["name"] == "folded"] == [16, 16]


def test_all_warps_have_read_the_weights_of_tokens_before_one_stores_what_they_decay_to(binaries):
    """Otherwise a warp that lags behind would let them decay twice; x is what a turn reads last."""
    for each in (each for each in binaries if each["name"] == "folded"):
        after = [later for now, later in pairwise(each["order"]) if now.startswith("ld")]
        assert after == ["bar.sync"], each["order"]
    ahead = [each for each in binaries if each["name"] == "dual" and each["launch"]["stages"] == 1]
    assert len(ahead) == 4
    for each in ahead:  # the last load of x is that of the loop
        last = max(place for place, what in enumerate(each["order"]) if what.startswith("ld"))
        assert each["order"][last + 1] == "bar.sync", each["order"]


def test_eight_heads_share_two_warps(binaries):
    layouts = {each["preset"]: each["launch"] for each in binaries if each["name"] == "dual" and each["rows"] == 128}
    assert [layouts["aim-b"][name] for name in ("heads", "tokens", "warps", "stages")] == [8, 8, 2, 3]
    assert [layouts["aim-xl"][name] for name in ("heads", "tokens", "warps", "stages")] == [16, 8, 4, 3]
