"""``aimamba study``: every kind of study at a tiny size, interruption, refusals."""

import json
import math
import re
import shutil
import signal

import pytest
import torch
from PIL import Image
from small_studies import DATA, JUDGING, SMALL

from aimamba.data import Avatars
from aimamba.studies import figures
from aimamba.studies.ordered import OrderedPipeline
from aimamba.train.generator import GeneratorTask

SHARED = DATA + SMALL + JUDGING

STUDIES = {
    "scaling": """
[[variants]]
name = "small"
[[variants]]
name = "large"
lr = 5e-3
[variants.model]
width = 24
""",
    "ablation": """
[[variants]]
name = "plain"
title = "no positions, no adaLN"
model = { positions = "none", adaln = "none" }
[[variants]]
name = "hilbert"
order = "hilbert"
seeds = [0, 1]
""",
    "baseline": """
[sweep]
lrs = [1e-3, 1e-2]
share = 0.5
[speed]
tokens = [4, 16]
batches = [1]
[[variants]]
name = "aim"
title = "AiM"
family = "AiM"
size = "tiny"
[[variants]]
name = "attention"
family = "attention"
size = "tiny"
model = { mixer = "attention", positions = "rope" }
""",
    "guidance": 'schedules = ["constant", "linear"]\n',
    "guidance-free": """
intervals = [[2.0, 0.0, 0.5]]
[[variants]]
name = "control"
[[variants]]
name = "cca"
title = "CCA"
lr = 5e-3
task = { objective = "cca", cca_beta = 1.0, cca_lambda = 1.0 }
""",
}


class Sums:
    """A network without weights: a few sums over pixels."""

    name = "sums"
    width = 6
    spatial_width = 0
    batch_size = 8
    device = torch.device("cpu")
    settings = {"network": "sums"}  # noqa: RUF012

    def __call__(self, images):
        from aimamba.evaluation.features import Features

        matrix = torch.randn(3 * 16 * 16, 6, generator=torch.Generator().manual_seed(0)).double()
        return Features((images.double().flatten(1) / 255 @ matrix).tanh().float())


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the network, and measure speed for an instant."""
    monkeypatch.setattr("aimamba.studies.run.open_extractor", lambda name, device: Sums())
    monkeypatch.setattr("aimamba.studies.speed._LONG_ENOUGH", 1e-9)


@pytest.fixture
def tokenizer(here, make_vq):
    """A tokenizer in the folder ``vq``: images of 16 pixels are 4 x 4 codes."""
    model = make_vq(channel_mult=(1, 1, 2))
    model.save_pretrained(here / "vq")
    return model


@pytest.fixture
def study(here, aimamba, tokenizer, make_aim):
    """Write the recipe of a kind of study and run it."""
    from aimamba.pipeline import Pipeline

    def run(kind, *options):
        shared = SHARED if kind != "guidance-free" else re.sub(r"(?s)\[model\].*?\n\n", "", SHARED)
        (here / f"{kind}.toml").write_text(f'kind = "{kind}"\n{shared}{STUDIES[kind]}')
        if "guidance" in kind:
            Pipeline(tokenizer, make_aim(num_classes=2, num_tokens=16), ("planets", "sprouts")).save_pretrained("whole")
        source = ("--model", "whole") if "guidance" in kind else ("--tokenizer", "vq")
        return aimamba("study", f"{kind}.toml", *source, "--device", "cpu", *options)

    return run


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_scaling(study, here):
    status, out, err = study("scaling")
    assert status == 0, err
    folder = here / "studies/scaling"
    assert out == "2 runs in studies/scaling/results.json; studies/scaling/table.md, studies/scaling/figure.png\n"
    content = results(folder)
    assert (content["study"], content["settings"]["budget"], content["settings"]["model"]) == ("scaling", 8, "vq")
    runs = content["runs"]
    assert list(runs) == ["small-seed-0", "large-seed-0"]
    for name, lr in (("small-seed-0", 1e-2), ("large-seed-0", 5e-3)):
        run = runs[name]
        assert (run["steps"], run["pictures"], run["lr"], run["seed"]) == (2, 8, lr, 0)
        assert run["held_out"]["bits_per_token"] == pytest.approx(run["held_out"]["loss"] / math.log(2))
        assert run["non_embedding"] < run["parameters"]
        assert run["train_seconds"] > 0
        assert run["provenance"].keys() >= {"cpu", "cores", "torch", "date", "device"}
        assert [sample["sampling"]["cfg_scale"] for sample in run["samples"]] == [1.0, 2.0]
        numbers = run["samples"][0]["numbers"]
        assert numbers.keys() >= {"network", "frechet", "kid", "precision", "recall", "recognition"}
    assert runs["small-seed-0"]["parameters"] < runs["large-seed-0"]["parameters"]
    table = (folder / "table.md").read_text()
    assert "`aimamba study scaling --budget 8`: every run trains on 8 images" in table
    assert "-0.9838" in table
    assert "features of sums" in table
    assert table.count("| small |") == 2, "a line without and one with guidance"
    with Image.open(folder / "figure.png") as figure:
        assert figure.width > figure.height > 300


def test_a_run_is_what_train_makes_of_its_recipe(study, aimamba, here):
    from safetensors.torch import load_file

    study("scaling")
    run = here / "studies/scaling/runs/small-seed-0"
    status, _, err = aimamba("train", run / "recipe.toml", "--out", "again", "--device", "cpu")
    assert status == 0, err
    one, other = (load_file(folder / "model/generator/model.safetensors") for folder in (run, here / "again"))
    assert all(one[key].equal(other[key]) for key in one)


def test_ablation(study, refusal, here):
    assert study("ablation").status == 0
    runs = results(here / "studies/ablation")["runs"]
    assert list(runs) == ["plain-seed-0", "hilbert-seed-0", "hilbert-seed-1"]
    assert [run["order"] for run in runs.values()] == ["raster", "hilbert", "hilbert"]
    recipe = (here / "studies/ablation/runs/hilbert-seed-1/recipe.toml").read_text()
    assert 'order = "hilbert"' in recipe
    message = refusal("train", "studies/ablation/runs/hilbert-seed-1/recipe.toml", "--device", "cpu")
    assert "unknown key 'order'" in message, "an ordinary training would make another model"
    table = (here / "studies/ablation/table.md").read_text()
    assert "| no positions, no adaLN |" in table
    bits = [runs[f"hilbert-seed-{seed}"]["held_out"]["bits_per_token"] for seed in (0, 1)]
    assert f"{sum(bits) / 2:.4f} ({min(bits):.4f} to {max(bits):.4f})" in table


def test_baseline(study, here):
    assert study("baseline").status == 0
    runs = results(here / "studies/baseline")["runs"]
    tries = [f"sweep-{name}-lr-{lr}" for name in ("aim", "attention") for lr in ("0.001", "0.01")]
    assert list(runs) == [*tries, "speed-aim", "speed-attention", "aim-seed-0", "attention-seed-0"]
    assert [runs[name]["pictures"] for name in tries] == [4] * 4
    for name in ("aim", "attention"):
        best = min((run for run in tries if name in run), key=lambda run: runs[run]["held_out"]["bits_per_token"])
        assert runs[f"{name}-seed-0"]["lr"] == runs[best]["lr"]
    state = {name: [line["state_bytes"] for line in runs[f"speed-{name}"]["speed"]] for name in ("aim", "attention")}
    windows = 3 * (32 + 2 * 4)
    assert state["aim"][0] == 2 * 4 * (5 * (32 + 4 + 4) + windows), "x, B and weights of all places in two blocks"
    assert state["aim"][1] == 2 * 4 * (4 * 8 * 4 + windows), "states, where a cache would be larger"
    assert state["attention"] == [2 * 4 * 16 * (4 + 1), 2 * 4 * 16 * (16 + 1)], "keys and values of one"
    table = (here / "studies/baseline/table.md").read_text()
    assert "### tiny" in table
    assert "| quantity | AiM | attention | better |" in table
    assert "### Learning rates tried" in table
    assert "is at the edge of those tried" in table


def test_guidance(study, here):
    assert study("guidance").status == 0
    content = results(here / "studies/guidance")
    assert list(content["runs"]) == ["constant-1", "constant-2", "linear-2"]
    table = (here / "studies/guidance/table.md").read_text()
    assert "every setting generates 8 images with the generator of whole" in table
    assert "| 2 linear |" in table
    assert (here / "studies/guidance/figure.png").exists()


def test_guidance_free(study, here, aimamba, monkeypatch):
    from safetensors.torch import load_file

    assert study("guidance-free").status == 0
    folder = here / "studies/guidance-free"
    content = results(folder)
    runs = content["runs"]
    settings = ["constant-1", "constant-2", "constant-2-from-0-to-0.5"]
    assert list(runs) == ["speed", "control-seed-0", "cca-seed-0", *settings]
    assert [line["rows"] for line in runs["speed"]["speed"]] == [1, 2, 1.5]
    numbers = [runs[name]["samples"][0]["numbers"] for name in runs if name != "speed"]
    for found in numbers:
        assert found["reconstructions"].keys() >= {"frechet", "kid", "precision", "recall"}
        assert found["reconstructions"]["frechet"] != found["frechet"]
    assert len({found["frechet"] for found in numbers}) == 5
    assert (runs["cca-seed-0"]["pictures"], runs["cca-seed-0"]["lr"]) == (8, 5e-3)
    assert "positive" in runs["cca-seed-0"]["held_out"]
    assert "positive" not in runs["control-seed-0"]["held_out"]
    assert "whole as it is with every setting, and trained further on 8 images" in (folder / "table.md").read_text()
    with Image.open(folder / "figure.png") as figure:
        assert figure.width > figure.height > 300

    run = folder / "runs/cca-seed-0"
    assert aimamba("train", run / "recipe.toml", "--out", "again", "--device", "cpu")[0] == 0
    one, other = (load_file(place / "model/generator/model.safetensors") for place in (run, here / "again"))
    assert all(one[key].equal(other[key]) for key in one), "a run is what train makes of its recipe"

    wanted = runs.pop("cca-seed-0")["samples"][0]["numbers"]
    (folder / "results.json").write_text(json.dumps(content))
    monkeypatch.setattr(GeneratorTask, "batches", None)  # what is trained is not trained again
    assert study("guidance-free").status == 0
    again = results(folder)["runs"]["cca-seed-0"]["samples"][0]["numbers"]
    assert again["reconstructions"] == wanted["reconstructions"]


def test_finished_runs_are_not_repeated_and_the_report_needs_only_results(study, aimamba, here, monkeypatch):
    assert study("ablation").status == 0
    before = results(here / "studies/ablation")
    monkeypatch.setattr(GeneratorTask, "loss", None)
    assert study("ablation").status == 0
    assert results(here / "studies/ablation") == before
    (here / "elsewhere").mkdir()
    shutil.copy(here / "studies/ablation/results.json", here / "elsewhere")
    table = (here / "studies/ablation/table.md").read_text()
    status, _, _ = aimamba("study", "ablation.toml", "--report-only", "--out", "elsewhere")
    assert status == 0
    assert (here / "elsewhere/table.md").read_text() == table
    assert {path.name for path in (here / "elsewhere").iterdir()} == {"results.json", "table.md", "figure.png"}


def test_a_stopped_study_goes_on(study, here, monkeypatch):
    assert study("scaling", "--out", "whole-study").status == 0
    loss, steps = GeneratorTask.loss, []

    def interrupted(*arguments, **options):
        steps.append(arguments)
        if len(steps) == 3:  # the first step of the second run
            signal.raise_signal(signal.SIGINT)
        return loss(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorTask, "loss", interrupted)
        status, _, err = study("scaling")
    assert status == 130
    assert "stopped after step 1 of 2; the same command continues from studies/scaling/runs/large-seed-0" in err
    assert list(results(here / "studies/scaling")["runs"]) == ["small-seed-0"]

    def counted(*arguments, **options):
        steps.append(arguments)
        return loss(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorTask, "loss", counted)
        assert study("scaling").status == 0
    assert len(steps) == 4, "one step was left"
    one, other = (results(here / name)["runs"] for name in ("studies/scaling", "whole-study"))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name]["held_out"] == other[name]["held_out"]
        for mine, theirs in zip(one[name]["samples"], other[name]["samples"], strict=True):
            assert mine["numbers"] == theirs["numbers"]


def test_tokens_in_another_order_are_decoded_in_their_places(make_aim, make_vq):
    from aimamba.pipeline import Pipeline
    from aimamba.studies.scans import scan_order

    parts = make_vq(), make_aim(num_tokens=16), ()
    codes = torch.arange(16)[None]
    [wanted] = Pipeline(*parts).decode(codes)
    for order in ("raster", "column", "hilbert"):
        [decoded] = OrderedPipeline(*parts, order=order).decode(codes[:, torch.from_numpy(scan_order(order, 4))])
        assert torch.equal(decoded, wanted)


REFUSALS = {
    "": ["no study given", "baseline, exposure-bias, guidance, guidance-free, mixer, scaling, text, tokenizer"],
    "scalin": ["unknown study 'scalin'", "did you mean 'scaling'", "known studies: "],
    "nowhere/own.toml": ["cannot read nowhere/own.toml", "No such file"],
    "scaling --budget 0": ["--budget must be at least 1 image, got 0"],
    "scaling --budget -5": ["--budget must be at least 1 image, got -5"],
    f"scaling --budget {'9' * 400}": ["--budget must be at most 1,000,000,000,000 images"],
    "scaling --budge 5": ["unknown option '--budge'", "did you mean '--budget'"],
    "scaling --tokenizer nowhere": ["nowhere: no such file or folder"],
    "scaling --model vq": ["give their tokenizer with --tokenizer"],
    "guidance --tokenizer vq": ["give it with --model"],
    "guidance-free --tokenizer vq": ["study guidance-free samples a whole model", "give it with --model"],
    "guidance --model nowhere": ["nowhere: no such file or folder"],
    "scaling --device gpu": ["device 'gpu' is not available"],
    "scaling --out file": ["--out file", "is a file"],
    "scaling --report-only": ["studies/scaling/results.json does not exist", "without --report-only"],
    "scaling --report-only --out broken": ["broken/results.json is not valid JSON"],
    "scaling --report-only --out foreign": ["foreign/results.json does not hold the results of a study"],
    "ablation --report-only --out scaled": ["holds the study 'scaling', not 'ablation'"],
    "odd.toml --tokenizer vq": ["data.size must be a multiple of the tokenizer's down-sampling 4, got 18"],
    "tuned.toml --tokenizer vq": ["task.objective is for a generator that starts from another one", "leave it out"],
    "deep.toml --tokenizer vq": ["plain: model", "unknown key 'dept'"],
    "far.toml --tokenizer vq": [
        "reference avatars-16:planets,sprouts:held-out:10 has images of 16 pixels, the models generate 8"
    ],
    "rear.toml --tokenizer vq": ["hilbert: task.rear_recover_after must be at most 2", "got 3"],
    "places.toml --tokenizer vq": ["plain: task.random_order needs learned positions: set model.positions"],
    "own.toml --tokenizer vq": ["order 'hilbert' needs a grid whose side is a power of two, got 3"],
}


@pytest.mark.parametrize("arguments", REFUSALS)
def test_refusals(refusal, tokenizer, here, arguments):
    Avatars(16, "held-out", 10, ("planets", "sprouts"))  # the reference, cached now so that no bar is shown
    (here / "file").write_text("no folder")
    begun = {"format": "aimamba study 1", "study": "scaling", "settings": {}, "runs": {}}
    for name, text in (("broken", "{"), ("foreign", '{"runs": []}'), ("scaled", json.dumps(begun))):
        (here / name).mkdir()
        (here / name / "results.json").write_text(text)
    text = f'kind = "ablation"\n{SHARED}{STUDIES["ablation"]}'
    for name, side in (("own", 12), ("odd", 18), ("far", 8)):
        (here / f"{name}.toml").write_text(text.replace("size = 16", f"size = {side}"))
    (here / "deep.toml").write_text(text.replace('adaln = "none" }', "dept = 3 }"))
    (here / "tuned.toml").write_text(text.replace("sheet_pictures = 1", 'objective = "cca"'))
    (here / "rear.toml").write_text(f"{text}task = {{ rear_weight = 1.0, rear_recover_after = 3 }}\n")
    (here / "places.toml").write_text(
        text.replace("sheet_pictures = 1", "random_order = 1.0\nrandom_order_until = 2\nsheet_pictures = 1")
    )
    message = refusal("study", *arguments.split())
    for part in REFUSALS[arguments]:
        assert part in message
    assert not (here / "studies/ablation/runs").exists()


def test_other_settings_in_the_same_folder(study, refusal):
    assert study("guidance").status == 0
    message = refusal("study", "guidance.toml", "--model", "whole", "--budget", 9, "--device", "cpu")
    assert "results.json holds runs with budget 8, now it is 9; set it back, or give another --out" in message


def test_a_report_without_runs_names_no_figure(aimamba, here):
    settings = {"budget": 8, "model": "whole", "recipe": {"kind": "guidance", "variants": []}}
    content = {"format": "aimamba study 1", "study": "guidance", "settings": settings, "runs": {}}
    (here / "results.json").write_text(json.dumps(content))
    status, out, _ = aimamba("study", "guidance", "--report-only", "--out", ".")
    assert (status, out) == (0, "0 runs in results.json; table.md\n")


def test_without_matplotlib(refusal, tokenizer, monkeypatch, here):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    message = refusal("study", "scaling", "--tokenizer", "vq")
    assert message == "the figure of a study needs matplotlib; install it with: pip install 'aimamba[plots]'"
    assert not (here / "studies").exists()
