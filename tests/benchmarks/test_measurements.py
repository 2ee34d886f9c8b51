"""The plan of the benchmarks, and every kind of measurement on tiny models."""

import json

import pytest

from aimamba.models import AIM_PRESETS
from aimamba.ops.backends import BACKENDS
from benchmarks.images import check_memory
from benchmarks.measurement import LAYOUTS, SECTIONS, Measurement, SkippedError, spread
from benchmarks.ours import Ours
from benchmarks.plan import KERNELS, SCAN_MIXERS, Plan
from benchmarks.report import summary
from benchmarks.telling import OPTIMIZER
from benchmarks.worker import measure, read_measurement, write_measurement


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": 3}


@pytest.mark.parametrize("subject", ["aim", "attention"])
def test_generating_from_the_middle_takes_the_remaining_steps(subject):
    ours = Ours(Measurement(section="sampling", subject=subject, variant="plain", tokens=16, quick=True))
    assert len(list(ours.generate(2))) == 16
    late = list(ours.generate(2, start=9))
    assert len(late) == 16 - 9 - 1
    assert late[0].shape == (2,)


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
        ("ceilings", "bandwidth", "", "best"),
        ("ceilings", "products", "", "best"),
        ("training", "aim", "", "tokens_per_second"),
        ("training", "aim", OPTIMIZER, "tokens_per_second"),
        ("profile", "training", "", "kernels"),
        ("profile", "sampling", "plain", "kernels"),
        ("growth", "attention", "plain", "milliseconds_per_token"),
        ("startup", "load", "", "seconds"),
        ("decoder", "aim", "fast", "seconds_per_picture"),
        ("images", "aim", "plain", "images_per_second"),
        ("convolution", "ours", "", "milliseconds"),
        ("convolution", "shifted products", "", "milliseconds"),
        ("convolution", "grouped", "", "milliseconds"),
    ],
)
def test_other_sections_in_this_process(section, subject, variant, figure):
    settings = {"tokens": 16, "batch": 2, "quick": True, "limit_seconds": 0.01}
    found = measure(Measurement(section=section, subject=subject, variant=variant, **settings))
    assert figure in found
    assert summary(found) != "done"


@pytest.mark.parametrize(("limit", "estimated"), [(1e-9, True), (1e9, False)])
@pytest.mark.parametrize(("subject", "variant"), [("aim", "plain"), ("aim", "native"), ("attention", "plain")])
def test_a_slow_machine_estimates_images_from_steps(subject, variant, limit, estimated):
    settings = {"tokens": 16, "batch": 2, "quick": True, "limit_seconds": limit}
    found = measure(Measurement(section="sampling", subject=subject, variant=variant, **settings))
    if variant == "native" and "skipped" in found:
        pytest.skip(found["skipped"])
    assert found["estimated"] is estimated
    assert 0 < found["seconds_per_picture"]["min"] <= found["seconds_per_picture"]["median"]


def test_a_missing_engine_and_a_missing_peer_are_reported():
    settings = {"section": "sampling", "tokens": 16, "quick": True}
    assert "made-up" in measure(Measurement(subject="aim", variant="made-up", **settings))["unavailable"]
    nowhere = (("llamagen", "nowhere"),)
    assert "cannot be imported" in measure(Measurement(subject="llamagen", paths=nowhere, **settings))["unavailable"]


def plan(device="cpu", **settings):
    defaults = {"sections": SECTIONS, "batches": [1, 64], "dtypes": ["float32", "bfloat16"], "paths": {}}
    return Plan(**(defaults | settings), device=device).measurements()


def test_kernels_run_on_cuda_alone():
    assert not [each for each in plan() if each.section == "kernels"]
    assert not plan("cuda", sections=["kernels"], dtypes=["float32"])
    kernels = plan("cuda", sections=["kernels"])
    assert {each.dtype for each in kernels} == {"bfloat16"}
    assert kernels[0].subject == "copy"  # what the others are compared with
    assert sum(each.subject == "sampling" for each in kernels) == 2  # for each batch, since its shape has no size
    found = {(each.size, each.batch, each.subject) for each in kernels if each.subject in KERNELS}
    assert found == {(size, batch, kernel) for size in AIM_PRESETS for batch in (1, 64) for kernel in KERNELS}


def test_a_size_is_measured_alone():
    for section in ("sampling", "kernels", "scan"):
        assert {each.size for each in plan("cuda", sections=[section], size="aim-l")} <= {"aim-l", "aim-b"}
        measured = [each for each in plan("cuda", sections=[section], size="aim-l") if each.subject != "copy"]
        assert {each.size for each in measured} == {"aim-l"}


def test_backends_of_the_scan_by_device():
    scans = plan("cuda", sections=["scan"])
    assert {each.subject for each in scans} == {"chunked", *BACKENDS}
    assert {(each.size, each.batch, each.tokens) for each in scans} == {
        (size, 16, 256) for size in ("aim-b", "aim-l", "aim-xl")
    }
    assert {each.subject for each in scans if each.variant} == {"plain", "fla"}
    assert {each.variant for each in scans} == {"", *SCAN_MIXERS}
    assert {(each.subject, each.variant) for each in plan(sections=["scan"])} == {("chunked", ""), ("plain", "")}


def test_layouts_are_measured_where_chosen():
    assert not [each for each in plan("cuda") if each.variant == LAYOUTS]
    measured = plan("cuda", layouts=True)
    assert {each.subject for each in measured if each.variant == LAYOUTS} == {*KERNELS, "training", "triton"}
    [scan] = [each for each in measured if each.section == "scan" and each.variant == LAYOUTS]
    assert (scan.subject, scan.size, scan.dtype) == ("triton", "aim-b", "bfloat16")


def test_the_most_telling_figures_of_a_gpu():
    figures = plan("cuda", telling=True)
    first = {each.section: (each.size, each.batch) for each in reversed(figures)}
    assert list(dict.fromkeys(each.section for each in figures))[:3] == ["images", "sampling", "training"]
    assert (first["images"], first["sampling"], first["training"]) == (("aim-xl", 64), ("aim-xl", 64), ("aim-b", 32))
    whole = [(each.size, each.batch) for each in figures if each.section == "images" and each.variant == "cuda-graphs"]
    assert sorted(whole) == [("aim-l", 1), *(("aim-xl", batch) for batch in (64, 128, 256, 512))]
    assert {each.subject for each in figures if each.section in ("sampling", "training")} == {"aim"}, "no peer is named"
    assert len({json.dumps(each.identity) for each in figures}) == len(figures)
    paths = {"official": "AiM", "llamagen": "LlamaGen"}
    more = plan("cuda", telling=True, paths=paths)
    assert {each.subject for each in more} >= {"official", "llamagen", "vq-official"}
    assert all(each.box_seconds and each.dtype == "bfloat16" for each in more)
    assert {each.section for each in plan("cuda", telling=True, sections=["profile"])} == {"profile"}
    assert {each.section for each in plan("cuda", telling=True, sections=["sampling"])} == {"sampling", "ceilings"}


def test_eight_minutes_decide_what_is_aimed_at():
    """About 30 figures fit: times the official code, times LlamaGen, and all images with the decoder are among them."""
    more = plan("cuda", telling=True, paths={"official": "AiM", "llamagen": "LlamaGen"})
    early = {(each.section, each.subject, each.size, each.batch) for each in more[:16]}
    assert early >= {
        ("sampling", "official", "aim-xl", 64),
        ("sampling", "official", "aim-l", 1),
        ("training", "llamagen", "aim-b", 32),
        ("images", "aim", "aim-l", 1),
        ("ceilings", "bandwidth", "aim-b", 1),
        ("ceilings", "products", "aim-b", 1),
        *(("images", "aim", "aim-xl", batch) for batch in (64, 128, 256, 512)),
    }
    assert ("kernels", "training", "") in {(each.section, each.subject, each.variant) for each in more[:20]}, "scans"
    assert not [each for each in more if each.section == "scan"], "of other forms than those that train"


def test_images_are_timed_one_batch_after_the_other():
    settings = {"tokens": 16, "batch": 3, "quick": True, "limit_seconds": 0.2}
    found = measure(Measurement(section="images", subject="aim", variant="plain", **settings))
    assert found["batches"] == found["seconds_per_picture"]["runs"] + 1 >= 3
    fastest, slowest = (1 / found["seconds_per_picture"][key] for key in ("min", "max"))
    assert slowest <= found["images_per_second"] <= fastest
    settings |= {"section": "images", "subject": "aim"}
    assert "made-up" in measure(Measurement(variant="made-up", **settings))["unavailable"]


def test_images_that_do_not_fit_are_skipped():
    check_memory(89 << 30, 100 << 30)
    with pytest.raises(SkippedError, match="its rows remember 91 GiB, and the device has 100"):
        check_memory(91 << 30, 100 << 30)
