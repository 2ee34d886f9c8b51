"""Tables and figures from results alone."""

import math
import re

import pytest
from matplotlib.figure import Figure
from PIL import Image

from aimamba.errors import ConfigError
from aimamba.studies.figures import _baseline
from aimamba.studies.recipe import study_names
from aimamba.studies.report import write_report
from aimamba.studies.results import Results
from aimamba.studies.rows import pearson
from aimamba.studies.tables import _winner, markdown_table, mean_and_range, study_table


@pytest.mark.parametrize("name", study_names())
def test_table_and_figure(finished, name):
    results = finished(name)
    place, figure = write_report(results)
    text = place.read_text(encoding="utf-8")
    assert text == study_table(results)
    assert f"`aimamba study {name} --budget {results.settings['budget']}`" in text
    assert "Some CPU, 1 of 2 cores, torch 2.13.0; 2026-11-2" in text
    assert "commit c0ffee" in text
    assert "features of lite0" in text
    assert not re.search(r"\bnan\b", text)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 3 for line in lines)
    with Image.open(figure) as image:
        assert image.width > 600
        assert len(set(image.convert("RGB").get_flattened_data())) > 50


@pytest.mark.parametrize("name", study_names())
def test_the_report_of_a_study_without_samples(finished, name):
    results = finished(name)
    results.runs.clear()
    [place] = write_report(results)
    assert "No run with samples is finished yet." in place.read_text()
    assert {path.name for path in place.parent.iterdir()} == {"results.json", "table.md"}


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run.pop("held_out"),
        lambda run: run.pop("parameters"),
        lambda run: run.update(parameters=0),
        lambda run: run.update(samples=[]),
        lambda run: run.update(samples=1),
        lambda run: run.update(variant="other"),
        lambda run: run.update(provenance={}),
        lambda run: run["samples"][0]["numbers"].update(frechet="x"),
        lambda run: run["samples"][0].update(sampling=None),
    ],
)
def test_damaged_numbers_are_one_line(finished, change):
    results = finished("scaling")
    for run in results.runs.values():
        change(run)
    with pytest.raises(
        ConfigError, match=r"results.json is not what `aimamba study` writes \(\w+Error: .*; restore it"
    ):
        write_report(results)


@pytest.mark.parametrize("name", study_names())
def test_titles_may_hold_any_characters(finished, name):
    results = finished(name)
    title = r"costs $\oops{ and $2 | \$3"
    results.settings["model"] = title
    for variant in results.settings["recipe"]["variants"]:
        variant["title"] = title
        variant["family"] += title
    place, figure = write_report(results)
    assert figure.exists()
    tables = re.findall(r"(?m)(?:^\|.*\n)+", place.read_text().replace(r"\|", ""))
    assert name == "guidance" or any(r"\oops" in table for table in tables)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


@pytest.mark.filterwarnings("error")
def test_a_panel_without_labels_has_no_legend(finished):
    results = finished("baseline")
    for variant in results.settings["recipe"]["variants"]:
        variant["family"] = f"_{variant['family']}"  # which matplotlib hides
    assert write_report(results)[1].exists()


def test_reports_of_studies_with_missing_runs(finished):
    for name, kept in (("baseline", "aim-1M-seed-1"), ("ablation", "block-seed-1"), ("scaling", "0.2M-seed-0")):
        results = finished(name)
        runs = dict(results.runs)
        results.runs.clear()
        results.runs[kept] = runs[kept]
        write_report(results)
        results.path.unlink()


@pytest.mark.parametrize("name", ["scaling", "guidance-free", "tokenizer"])
def test_a_budget_below_a_batch_is_a_batch(finished, name):
    results = finished(name)
    results.settings["budget"] = 1
    for run in results.runs.values():
        run["pictures"] = 32
    text = study_table(results)
    assert f"`aimamba study {name} --budget 1`: " in text
    assert re.search("train(s|ed further) on 32 images", text)
    assert name != "tokenizer" or "and its tokenizer on 32." in text


def test_scaling_shows_correlations_beside_that_of_the_paper(finished):
    text = study_table(finished("scaling"))
    assert "| held-out bits per token | -1.0000 |" in text
    assert "| lite0 Fréchet, guidance 1.5 | -1.0000 |" in text
    assert "-0.9838" in text
    assert "6 models" in text


def test_the_baseline_names_a_better_model_only_if_all_runs_agree(finished):
    results = finished("baseline")
    text = study_table(results)
    line = next(line for line in text.splitlines() if line.startswith("| state of a row after 1024 tokens, KiB"))
    assert line.endswith("| AiM 1.2M |")
    assert "| held-out bits per token | 2.9" in text
    assert "no clear difference" in text
    large = text.split("### 4.8 million parameters")[1]
    assert "| held-out bits per token | 2.3238 | 2.3299 | AiM 4.8M |" in large
    assert "With a single run each, that may be chance" in text


def test_guidance_free_compares_settings_and_fine_tuned_models(finished):
    results = finished("guidance-free")
    text = study_table(results)
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    titles = [variant["title"] for variant in results.settings["recipe"]["variants"]]
    assert [line[0].strip("| ") for line in lines[2:]][-len(titles) :] == titles
    settings = {(line[0].strip("| "), line[1]): line for line in lines[2:]}
    assert settings["avatars-64", "none"][2:5] == ["1.00", "20.0", "158.0"]
    assert settings["avatars-64", "2 from 0% to 50%"][2:4] == ["1.50", "13.3"]
    assert settings["avatars-64", "2 linear"][2:4] == ["2.00", "10.0"]
    assert settings[titles[-1], "none"][4] == "80.0"
    assert "40.0" in settings[titles[-1], "none"], "against reconstructions"
    assert f"trained further on {results.settings['budget']:,} images" in text


def test_text_has_a_table_for_each_set(finished):
    results = finished("text")
    text = study_table(results)
    run = results.runs["classes-seed-0"]
    assert "### `captioned-avatars-64:held-out-pairs`" in text
    lines = [line for line in text.splitlines() if line.startswith("| class names only")]
    assert len(lines) == 2
    bits = [results.runs[f"classes-seed-{seed}"]["held_out"]["bits_per_token"] for seed in range(3)]
    assert f"| {bits[1] - 0.5:.3f} ({bits[0] - 0.5:.3f} to {bits[2] - 0.5:.3f}) |" in lines[0]
    assert f"| {run['parameters']:,} |" in lines[0]
    assert "| 25.0 (25.0 to 25.0) | 50.0 (50.0 to 50.0) | 12.5 (12.5 to 12.5) | 25.0 (25.0 to 25.0) |" in lines[0]
    assert "Of 283 real images are read: 98.0% of the attributes and 49.0% bound as they are, 90.0%" in text
    assert "20.0% of the attributes and 10.0% bound with captions of other images." in text
    seconds = 21 * (300 + 30 + 2 * 60)
    assert f"21 runs, {seconds / 3600:.1f} hours" in text


def test_winner():
    titles = ("A", "B")
    assert _winner(titles, ([1.0, 2.0], [3.0]), "lower") == "A"
    assert _winner(titles, ([1.0, 2.0], [3.0]), "higher") == "B"
    assert _winner(titles, ([4.0], [1.0, 3.0]), "lower") == "B"
    assert _winner(titles, ([4.0], [1.0, 3.0]), "higher") == "A"
    assert _winner(titles, ([1.0, 3.0], [2.0, 4.0]), "lower") == "no clear difference"
    assert _winner(titles, ([2.0], [2.0]), "lower") == "equal"
    assert _winner(titles, ([], [2.0]), "lower") == "-"
    assert _winner(titles, ([100.0], [109.0]), "higher", margin=0.1) == "no clear difference"
    assert _winner(titles, ([100.0], [111.0]), "higher", margin=0.1) == "B"
    assert _winner(titles, ([111.0], [100.0]), "lower", margin=0.1) == "B"


def test_pearson():
    x = [math.log10(parameters) for parameters in (148e6, 350e6, 763e6, 1300e6)]
    assert pearson(x, [3.52, 2.83, 2.56, 2.21]) == pytest.approx(-0.987, abs=5e-4), "the paper's table 2"
    assert math.isnan(pearson([1.0, 2.0], [1.0, 2.0]))
    assert math.isnan(pearson([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]))


def test_cells():
    assert mean_and_range([], 2) == "-"
    assert mean_and_range([0.5], 1, 100.0) == "50.0"
    assert mean_and_range([1.0, 2.0, 6.0], 1) == "3.0 (1.0 to 6.0)"
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert markdown_table(["a|b"], [["|"]]) == "| a\\|b |\n| --- |\n| \\| |"


def test_mixers_of_one_size_have_a_line_each_instead_of_a_place_by_parameters(finished):
    figure = Figure()
    _baseline(figure, finished("mixer"))
    bits, distance, state = figure.axes
    names = [label.get_text() for label in bits.get_yticklabels()]
    assert names == ["Mamba-2", "attention", "Gated DeltaNet", "Mamba-3", "Mamba-2 with attention"]
    assert (bits.get_xlabel(), len(bits.lines), len(distance.lines)) == ("held-out bits per token", 5, 5)
    assert [text.get_text() for text in state.get_legend().get_texts()] == names


def test_committed_results_have_an_up_to_date_table_and_a_figure():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "docs" / "studies"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for name in study_names():
        assert f"aimamba study {name}" in readme
        if (folder / name).exists():
            made = study_table(Results.read(folder / name / "results.json", name))
            assert (folder / name / "table.md").read_text(encoding="utf-8") == made
            assert made in readme, f"{name}: put table.md into docs/studies/README.md"
            assert f"({name}/figure.png)" in readme
            assert (folder / name / "figure.png").exists()
