"""``python -m benchmarks``: the whole command on tiny models, and its arithmetic against counts by hand."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from aimamba.models import AIM_PRESETS, AiM, AiMConfig
from benchmarks.floors import (
    Memory,
    Work,
    attention_mixing,
    sampling_bytes,
    sampling_floor,
    sampling_operations,
    ssd_mixing,
    training_operations,
)
from benchmarks.measurement import Measurement, spread
from benchmarks.ours import Ours, attention_of_same_size, count_work
from benchmarks.plan import Plan
from benchmarks.report import markdown, table
from benchmarks.results import Results
from benchmarks.worker import measure, read_measurement, write_measurement

ROOT = Path(__file__).parent.parent
CEILINGS = {"bytes_per_second": 1e9, "operations_per_second": {"float32": 1e10}}
MACHINE = {"cpu": "a", "threads": 1, "torch": "2", "date": "2026-01-02T03:04:05"}


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


# Counts


def test_work_of_aim_b_by_hand():
    with torch.device("meta"):
        work = count_work(AiM(AIM_PRESETS["aim-b"]))
    in_proj, out_proj = 768 * (2 * 1536 + 2 * 128 + 24), 1536 * 768
    assert work.matrices == 16384 * 768 + 24 * (in_proj + out_proj)
    assert work.once == 24 * 768 * 3 * 768 + 768 * 2 * 768
    assert work.mixing == 24 * (2 * 64 * (128 + 1536) + 4 * 1536 * 128)
    state, dual = work.memories
    window = 24 * 4 * 3 * (1536 + 256)
    assert state == Memory(state_bytes=24 * 4 * 24 * 64 * 128 + window, state_operations=24 * 5 * 24 * 64 * 128)
    assert dual == Memory(
        state_bytes=window,
        cache_bytes=24 * 4 * (1536 + 128 + 24),
        cache_operations=24 * (2 * (1536 + 128) + 3 * 24),
    )


def test_the_dual_form_counts_while_it_is_smaller():
    with torch.device("meta"):
        work = count_work(AiM(AIM_PRESETS["aim-b"]))
    state, dual = work.memories
    assert work.memory(128.5) == dual  # an image of 256 codes on average
    assert work.memory(1024) == state


def test_work_of_the_attention_baseline_by_hand():
    config = AiMConfig(width=64, num_blocks=4, head_width=16, vocab_size=100, mixer="attention", feed_forward=2.0)
    work = count_work(AiM(config))
    assert work.matrices == 100 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert work.memories == (Memory(cache_bytes=4 * 2 * 2 * 64, cache_operations=2 * 2 * 2 * 64),)  # keys and values
    assert work.mixing == 2 * attention_mixing(width=64, tokens=256)


def test_the_work_of_bfloat16_keeps_the_state_wide():
    config = AiMConfig(width=32, num_blocks=1, vocab_size=16, state_size=8, head_width=16)
    wide, narrow = count_work(AiM(config)), count_work(AiM(config).cast(torch.bfloat16))
    window = 3 * (64 + 2 * 8)
    assert wide.memories[0].state_bytes - narrow.memories[0].state_bytes == 2 * window
    assert wide.memories[1].cache_bytes - narrow.memories[1].cache_bytes == 2 * (64 + 8)
    assert wide.matrices == narrow.matrices


@pytest.mark.parametrize("size", ["aim-b", "aim-l"])
def test_the_attention_baseline_has_as_many_parameters(size):
    with torch.device("meta"):
        ours, baseline = (
            AiM(config).num_parameters() for config in (AIM_PRESETS[size], attention_of_same_size(AIM_PRESETS[size]))
        )
    assert abs(ours - baseline) / ours < 0.002


def test_bytes_and_operations_of_a_token_by_hand():
    memory = Memory(state_bytes=50, state_operations=60, cache_bytes=8, cache_operations=12)
    work = Work(matrices=1000, once=400, memories=(memory,))
    # Four tokens: 1000 + 400 / 4 numbers of 2 bytes; a row reads and writes its state, reads 2.5 places, writes one.
    assert sampling_bytes(work, "bfloat16", rows=3, tokens=4) == 2 * 1100 + 3 * (2 * 50 + 8 * 2.5 + 8)
    assert sampling_bytes(work, "int8", rows=3, tokens=4, seen=5) == 1100 + 3 * (2 * 50 + 8 * 5 + 8)
    assert sampling_operations(work, rows=3, tokens=4) == 3 * (2 * 1100 + 60 + 12 * 2.5)


def test_a_floor_is_the_larger_of_two():
    few = sampling_floor(Work(matrices=1000), "float32", CEILINGS, rows=2, tokens=1)
    assert few.bound == "bytes"
    assert few.seconds == 4000 / 1e9
    many = sampling_floor(Work(matrices=1000), "float32", CEILINGS, rows=200, tokens=1)
    assert many.bound == "operations"
    assert many.seconds == 200 * 2000 / 1e10
    unmeasured = sampling_floor(Work(matrices=1000), "int8", CEILINGS, rows=200, tokens=1)
    assert unmeasured.operations_seconds is None
    assert unmeasured.seconds == 1000 / 1e9


def test_training_operations_by_hand():
    work = Work(matrices=10, once=3, mixing=7)
    assert training_operations(work, images=2, tokens=5) == 3 * 2 * (5 * 20 + 6)
    assert training_operations(work, images=2, tokens=5, mixing=True) == 3 * 2 * (5 * 27 + 6)
    assert ssd_mixing(inner=6, state_size=4, chunk=8) == 2 * 8 * 4 + 2 * 8 * 6 + 2 * 2 * 6 * 4
    assert attention_mixing(width=6, tokens=3) * 3 == 2 * 2 * 6 * (1 + 2 + 3)


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": 3}


# Subjects and plan


@pytest.mark.parametrize("subject", ["aim", "attention"])
def test_drawing_from_the_middle_takes_the_rest(subject):
    ours = Ours(Measurement(section="sampling", subject=subject, variant="plain", tokens=16, quick=True))
    assert len(list(ours.draw(2))) == 16
    late = list(ours.draw(2, start=9))
    assert len(late) == 16 - 9 - 1
    assert late[0].shape == (2,)


def test_work_survives_json():
    work = Work(matrices=3, memories=(Memory(state_bytes=1), Memory(cache_bytes=2)), mixing=4)
    assert Work.read(json.loads(json.dumps(asdict(work)))) == work


def test_a_measurement_survives_json():
    measurement = Measurement(section="sampling", subject="aim", paths=(("llamagen", "there"), ("transformers", "")))
    assert read_measurement(write_measurement(measurement)) == measurement


def test_peers_are_measured_where_named():
    def subjects(paths):
        plan = Plan(sections=["sampling", "decoder"], batches=[1], dtypes=["float32", "int8"], paths=paths)
        return {(each.section, each.subject) for each in plan.measurements()}

    ours = {("sampling", "aim"), ("sampling", "attention"), ("decoder", "aim")}
    assert subjects({}) == ours
    assert subjects({"llamagen": "x", "mamba": "y"}) == ours | {("sampling", "llamagen"), ("decoder", "vq-official")}


@pytest.mark.parametrize(
    ("section", "subject", "variant", "figure"),
    [
        ("training", "aim", "", "tokens_per_second"),
        ("growth", "attention", "plain", "milliseconds_per_token"),
        ("startup", "load", "", "seconds"),
        ("decoder", "aim", "one by one", "seconds_per_picture"),
    ],
)
def test_other_sections_in_this_process(section, subject, variant, figure):
    settings = {"tokens": 16, "batch": 2, "quick": True, "limit_seconds": 0.01}
    found = measure(Measurement(section=section, subject=subject, variant=variant, **settings))
    assert figure in found


@pytest.mark.parametrize(("limit", "estimated"), [(1e-9, True), (1e9, False)])
@pytest.mark.parametrize(("subject", "variant"), [("aim", "plain"), ("aim", "native"), ("attention", "plain")])
def test_a_slow_machine_estimates_images_from_steps(subject, variant, limit, estimated):
    settings = {"tokens": 16, "batch": 2, "quick": True, "limit_seconds": limit}
    found = measure(Measurement(section="sampling", subject=subject, variant=variant, **settings))
    if variant == "native" and "skipped" in found:
        pytest.skip(found["skipped"])
    assert found["estimated"] is estimated
    assert 0 < found["seconds_per_picture"]["min"] <= found["seconds_per_picture"]["median"]


def test_a_missing_engine_and_a_missing_peer_are_told():
    settings = {"section": "sampling", "tokens": 16, "quick": True}
    assert "made-up" in measure(Measurement(subject="aim", variant="made-up", **settings))["unavailable"]
    nowhere = (("llamagen", "nowhere"),)
    assert "cannot be imported" in measure(Measurement(subject="llamagen", paths=nowhere, **settings))["unavailable"]


# Results


def found(seconds):
    return {
        "seconds_per_picture": spread([seconds]),
        "milliseconds_per_token": spread([1000 * seconds / 16]),
        "estimated": False,
        "peak_bytes": 1 << 30,
        "work": asdict(Work(matrices=1000)),
    }


def test_results_are_added_to_and_replaced(tmp_path):
    measurement = Measurement(section="sampling", subject="aim", tokens=16)
    for seconds in (1.0, 2.0):
        results = Results.open(tmp_path, MACHINE)
        results.add(measurement, found(seconds))
        results.write(tmp_path)
    products = Measurement(section="ceilings", subject="products")
    results.add(Measurement(section="ceilings", subject="bandwidth"), {"rates": {"sum": 1e9}, "best": 1e9})
    results.add(products, {"rates": {"1 x 1 x 1": 1e10}, "best": 1e10})
    results.write(tmp_path)
    [sampling] = Results.open(tmp_path, MACHINE).of("sampling")
    assert sampling["seconds_per_picture"]["median"] == 2.0
    assert sampling["floor"]["milliseconds_per_token"] == pytest.approx(1000 * 4000 / 1e9)
    assert sampling["times_floor"] == pytest.approx(2.0 / 16 / (4000 / 1e9))
    assert "| AiM | float32 | 1 | 2.00 |" in markdown(results)


def test_a_ceiling_only_rises():
    results = Results(MACHINE)
    for best in (1.0, 3.0, 2.0):
        results.add(Measurement(section="ceilings", subject="bandwidth"), {"rates": {"sum": best}, "best": best})
    assert [each["best"] for each in results.measurements] == [3.0]


def test_narrow_numbers_can_be_widened():
    results = Results(MACHINE)
    results.add(Measurement(section="ceilings", subject="bandwidth"), {"rates": {"sum": 1.0}, "best": 1.0})
    for dtype, best in {"float32": 3.0, "bfloat16": 2.0, "int8": 5.0}.items():
        measurement = Measurement(section="ceilings", subject="products", dtype=dtype)
        results.add(measurement, {"rates": {"1 x 1 x 1": best}, "best": best})
    assert results.ceilings()["operations_per_second"] == {"float32": 3.0, "bfloat16": 3.0, "int8": 5.0}


def test_results_of_another_machine_are_left_alone(tmp_path):
    from aimamba import ConfigError

    Results(MACHINE).write(tmp_path)
    with pytest.raises(ConfigError, match=r"measured with threads 1, this run has 2; .* --out"):
        Results.open(tmp_path, MACHINE | {"threads": 2})
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="expected results of this command"):
        Results.open(tmp_path, MACHINE)


def test_a_table():
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


# The command


def test_the_whole_command(tmp_path):
    done = command(
        *("--quick", "--device", "cpu", "--dtypes", "float32", "--batches", "2", "--limit-seconds", "0.05"),
        *("--only", "ceilings", "sampling", "--out", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["ceilings"]["bytes_per_second"] > 0
    assert content["ceilings"]["operations_per_second"]["float32"] > 0
    assert content["provenance"]["torch"] == torch.__version__
    engines = {each["variant"] for each in content["measurements"] if each["subject"] == "aim"}
    assert engines == {"plain", "native"} or any("native" in line for line in content["skipped"])
    taken = {(each["section"], each["subject"], each["variant"]): each for each in content["measurements"]}
    assert {("sampling", "aim", "plain"), ("sampling", "attention", "plain")} <= set(taken)
    drawn = taken["sampling", "aim", "plain"]
    assert drawn["batch"] == 2
    assert drawn["seconds_per_picture"]["min"] <= drawn["seconds_per_picture"]["median"]
    assert drawn["times_floor"] > 1
    assert drawn["peak_bytes"] > 1 << 20
    assert "| AiM, plain | float32 | 2 |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "sampling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "gpt"], "peer 'gpt' is unknown; expected one of official, llamagen, transformers, mamba"),
        (["--peer", "llamagen"], "peer 'llamagen' needs the folder of its checkout; write --peer llamagen=PATH"),
        (["--batches", "0"], "expected batches of at least 1 and a limit above 0 seconds"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path, capsys):
    from benchmarks.__main__ import main

    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"benchmarks: {message}\n"
