"""``aimamba train``, both stages, small."""

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from aimamba.models import VQModel
from aimamba.pipeline import Pipeline
from aimamba.train.generator import GeneratorTask
from aimamba.train.recipe import load_recipe, recipe_names
from aimamba.train.tokenizer import TokenizerTask
from aimamba.train.toml import to_toml

TINY = """--size 16 --steps 1 --batch-size 4 --device cpu --set model.channels=8 --set model.z_channels=8
--set model.norm_groups=4 --set model.codebook_size=16 --set data.per_class=4 --set data.held_out_per_class=1"""

REFUSALS = {
    "": ["no recipe given", *recipe_names()],
    "avatars-tinyvq": ["unknown recipe 'avatars-tinyvq'", "did you mean 'avatars-tiny-vq'", "known recipes: "],
    "vq": ["unknown recipe 'vq'", "the path of a .toml file"],
    "nowhere/vq.toml": ["cannot read nowhere/vq.toml", "No such file"],
    "no.toml": ["no.toml is not valid TOML", "line 1"],
    "vq.toml --list": ["--list stands alone, got vq.toml too"],
    "--settings --show vq.toml": ["--show stands alone, got --settings too"],
    "--show avatars-tinyvq": ["unknown recipe 'avatars-tinyvq'", "did you mean 'avatars-tiny-vq'"],
    "--show nowhere/vq.toml": ["cannot read nowhere/vq.toml"],
    "vq.toml --workers -1": ["data.workers must not be negative, got -1"],
    "vq.toml --workers 9999": ["data.workers must be at most 256, got 9999"],
    "vq.toml --steps 0": ["fit.steps must be at least 1, got 0"],
    "vq.toml --batch-size -1": ["fit.batch_size must be at least 1, got -1"],
    f"vq.toml --batch-size {2**62}": ["fit.batch_size must be at most 1,048,576, got 4,611,686,018,427,387,904"],
    f"aim.toml --tokenizer VQ --set task.sheet_pictures={2**62}": ["task.sheet_pictures must be from 1 to 100, got"],
    "vq.toml --lr 0": ["fit.lr must be positive, got 0"],
    "vq.toml --lr nan": ["fit.lr must be positive, got nan"],
    "vq.toml --seed -1": ["fit.seed must not be negative, got -1"],
    "vq.toml --size 0": ["data.size = 0 is the size of the images of a generator's 'init'", "in pixels"],
    "vq.toml --size -16": ["data.size must not be negative, got -16"],
    "vq.toml --size 18": ["data.size must be a multiple of the tokenizer's down-sampling 4, got 18"],
    "vq.toml --size 4": ["size must be 8 to 4096 pixels for avatars, got 4"],
    "vq.toml --set fit.step=4": ["unknown setting 'fit.step'", "did you mean 'fit.steps'"],
    "vq.toml --set steps=4": ["unknown setting 'steps'", "did you mean 'fit.steps'"],
    "vq.toml --set model.chanels=4": ["unknown key 'chanels'", "did you mean 'channels'"],
    "vq.toml --set model.preset=vq-f8": ["unknown model.preset 'vq-f8'", "did you mean 'vq-f16'"],
    "vq.toml --set task.l3_weight=4": ["unknown key 'l3_weight'", "did you mean ", "'l1_weight'"],
    "vq.toml --set fit.steps=many": ["steps must be int, got 'many'"],
    "vq.toml --set stage=decoder": ["stage must be one of 'tokenizer', 'generator'", "got 'decoder'"],
    "vq.toml --set fit.steps": ["--set expects KEY=VALUE", "'fit.steps'"],
    "vq.toml --set =4": ["--set expects KEY=VALUE", "'=4'"],
    "vq.toml --data nowhere": ["nowhere: no such file, folder or named set"],
    "vq.toml --data 2024": ["2024: no such file, folder or named set"],
    "vq.toml --data avatar": ["did you mean 'avatars'"],
    "vq.toml --data avatars:planet": ["no avatar style 'planet'", "did you mean 'planets'"],
    "vq.toml --data empty": ["empty: the folder is empty"],
    "vq.toml --data photos/cats": ["8 images but no sub-folders"],
    "vq.toml --data photos/cats/0.png": ["this is a file"],
    "vq.toml --data photos --size 24": ["24 x 20 pixels", "at least 24"],
    "vq.toml --device gpu": ["device 'gpu' is not available"],
    "vq.toml --out no.toml": ["--out no.toml", "is a file"],
    "aim.toml": ["task.tokenizer is missing", "--tokenizer"],
    "aim.toml --tokenizer runs/none": ["the tokenizer runs/none does not exist yet", "--tokenizer"],
    "avatars-tiny-aim": ["runs/avatars-tiny-vq does not exist yet", "'aimamba train avatars-tiny-vq'", "--tokenizer"],
    "avatars-64-decoder": ["the model runs/avatars-64-vq does not exist", "'aimamba train avatars-64-vq'", "--init"],
    "vq.toml --init=": ["init is empty", "--init", "leave it out"],
    "aim.toml --tokenizer VQ --size 18": ["data.size must be a multiple of the tokenizer's down-sampling 4, got 18"],
    "aim.toml --tokenizer VQ --set model.vocab_size=99": ["model.vocab_size is 16", "says 99"],
    "aim.toml --tokenizer VQ --set model.num_classes=9": ["model.num_classes is 2", "says 9"],
    "aim.toml --tokenizer VQ --set task.sheet_top_k=-1": ["task.sheet_top_k must be from 0 to 2,147,483,647, got -1"],
    f"aim.toml --tokenizer VQ --set task.sheet_top_k={2**63}": ["task.sheet_top_k must be from 0 to", "got 922337"],
    "aim.toml --tokenizer VQ --set task.sheet_cfg_scale=1e39": ["task.sheet_cfg_scale must be from 0 to 1,000,000"],
    "aim.toml --tokenizer VQ --set task.label_dropout=2": ["task.label_dropout must lie in [0, 1], got 2"],
}


@pytest.fixture
def recipes(trained, here):
    """The two recipes in the folder of the test."""
    for name in ("vq.toml", "aim.toml"):
        shutil.copy(trained / name, here)
    return here


def same_model(one, two):
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    return first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


def metrics(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    unsteady = ("seconds", "pictures_per_second")
    return [{key: value for key, value in json.loads(line).items() if key not in unsteady} for line in lines]


class TestRuns:
    def test_the_folder_of_a_run(self, trained):
        files = {"recipe.toml", "metrics.jsonl", "sheets", "checkpoint.pt", "model"}
        for stage, steps, more in (("vq", 3, set()), ("aim", 2, {"codes"})):
            run = trained / "runs" / stage
            assert {path.name for path in run.iterdir()} == files | more
            assert [path.name for path in (run / "sheets").iterdir()] == [f"step-{steps:06d}.png"]
            assert [line["split"] for line in metrics(run)] == ["train", "held-out"]
            assert tomllib.loads((run / "recipe.toml").read_text())["fit"]["steps"] == steps

    def test_the_generator_is_a_whole_pipeline(self, trained, aimamba, here):
        pipeline = Pipeline.from_pretrained(trained / "runs" / "aim")
        assert pipeline.class_names == ("planets", "sprouts")
        assert same_model(trained / "runs" / "aim" / "model" / "tokenizer", trained / "runs" / "vq" / "model")
        status, _, _ = aimamba("sample", "--model", trained / "runs" / "aim", "-n", 1, "--cfg-scale", 2)
        assert status == 0
        with Image.open(here / "samples" / "sprouts-seed0.png") as image:
            assert image.size == (16, 16)

    def test_again_it_is_finished(self, trained, aimamba, monkeypatch):
        monkeypatch.chdir(trained)
        before = {path: path.stat().st_mtime_ns for path in (trained / "runs").rglob("*")}
        for recipe, flags in (("vq", []), ("aim", ["--tokenizer", "runs/vq"])):
            status, out, err = aimamba("train", f"{recipe}.toml", *flags, "--device", "cpu")
            assert status == 0
            assert f"runs/{recipe} is finished" in err
            assert "encoding" not in err, "nothing is prepared for nothing"
            assert out.startswith(f"runs/{recipe}/model: ")
            assert out.count("\n") == 1
            last = metrics(trained / "runs" / recipe)[-1]
            assert out.endswith(", ".join(f"{k} {v:.4g}" for k, v in last.items() if k not in ("step", "split")) + "\n")
        assert {path: path.stat().st_mtime_ns for path in (trained / "runs").rglob("*")} == before

    def test_a_stopped_run_goes_on(self, trained, recipes, aimamba, monkeypatch):
        loss, steps = TokenizerTask.loss, []

        def interrupted(*arguments, **options):
            steps.append(arguments)
            if len(steps) == 2:
                signal.raise_signal(signal.SIGINT)
            return loss(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(TokenizerTask, "loss", interrupted)
            status, out, err = aimamba("train", "vq.toml", "--device", "cpu")
        assert (status, out) == (130, "")
        last = err.splitlines()[-1]
        assert last == "aimamba: stopped after step 2 of 3; the same command continues from runs/vq"
        assert not (recipes / "runs/vq/model").exists()
        status, out, err = aimamba("train", "vq.toml", "--device", "cpu")
        assert status == 0
        assert "continuing runs/vq after step 2 of 3" in err
        assert same_model(recipes / "runs/vq/model", trained / "runs/vq/model")
        assert metrics(recipes / "runs/vq") == metrics(trained / "runs/vq")

    def test_an_official_tokenizer_is_fine_tuned(self, photos, aimamba, golden):
        given = {key: value for key, value in load_file(golden / "adaln/model.safetensors").items() if "vqvae." in key}
        torch.save({"model": {key.removeprefix("vqvae."): value for key, value in given.items()}}, "vq_ds16_c2i.pt")
        before = VQModel.from_pretrained("vq_ds16_c2i.pt")
        command = ["train", "vq-finetune", "--data", photos, "--size", 32, "--steps", 4, "--batch-size", 2]
        losses = ["adversarial_weight=0.5", "discriminator_start=1", "adversarial_start=2", "discriminator_layers=1"]
        losses += ["discriminator_channels=4", "perceptual_side=32"]
        command += ["--device", "cpu", *(part for loss in losses for part in ("--set", f"task.{loss}"))]
        for whole, out in (("false", "all"), ("true", "decoder")):
            status, _, err = aimamba(*command, "--set", f"task.decoder_only={whole}", "--out", out)
            assert status == 0, err
        every, decoder = (VQModel.from_pretrained(out) for out in ("all", "decoder"))
        assert decoder.code_fingerprint() == before.code_fingerprint() != every.code_fingerprint()
        for after in (every, decoder):
            assert after.config == before.config
            assert not torch.equal(after.decoder.head.weight, before.decoder.head.weight)
        assert (every.codebook - before.codebook).abs().max() < 0.1, "the codebook is not filled from the data"

    def test_a_tokenizer_does_not_go_on_with_other_classes(self, recipes, photos, aimamba):
        command = ["train", "vq.toml", "--data", photos, "--device", "cpu", "--out", "run", "--steps"]
        assert aimamba(*command, 1).status == 0
        shutil.copytree(photos / "dogs", photos / "birds")
        message = aimamba(*command, 2).err.splitlines()[-1]
        assert (
            "run holds a run on another set of classes (cats, dogs) than the one given (birds, cats, dogs)" in message
        )
        shutil.rmtree(photos / "birds")
        (photos / "dogs/0.png").rename(photos / "dogs/more.png")
        assert "run holds a run on another set of images (" in aimamba(*command, 2).err.splitlines()[-1]
        (photos / "dogs/more.png").rename(photos / "dogs/0.png")
        assert aimamba(*command, 2).status == 0

    def test_the_best_model_is_the_result(self, recipes, aimamba, monkeypatch):
        values = iter([2.0, 1.0, 3.0])
        evaluate = TokenizerTask.evaluate
        monkeypatch.setattr(
            TokenizerTask, "evaluate", lambda *given: {**evaluate(*given), "reconstruction": next(values)}
        )
        status, out, err = aimamba("train", "vq.toml", "--device", "cpu", "--set", "fit.evaluate_every=1")
        assert status == 0
        assert out.startswith("runs/vq/model: step 2 of 3, the best, held out: reconstruction 1, ")
        assert "warning: held-out reconstruction rises: 3, best 1 at step 2." in err
        assert {"model", "model-last"} <= {path.name for path in Path("runs/vq").iterdir()}
        assert not same_model(Path("runs/vq/model"), Path("runs/vq/model-last"))
        assert aimamba("info", "runs/vq/model-last").status == 0

    def test_a_stopped_generator_goes_on_upon_the_same_codes(self, trained, recipes, aimamba, refusal, monkeypatch):
        command = ["train", "aim.toml", "--tokenizer", "vq", "--device", "cpu", "--set", "task.token_dropout=0.1"]
        command += ["--steps", 6, "--set", "fit.ema_decay=0.9"]
        shutil.copytree(trained / "runs/vq/model", "vq")
        assert aimamba(*command, "--out", "whole").status == 0

        loss, steps = GeneratorTask.loss, []

        def interrupted(*arguments, **options):
            steps.append(arguments)
            if len(steps) == 3:
                signal.raise_signal(signal.SIGTERM)
            return loss(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(GeneratorTask, "loss", interrupted)
            assert aimamba(*command, "--out", "parts").status == 143
        Path("vq").rename("first")
        other = VQModel.from_pretrained("first")
        other.codebook.data += 1
        other.save_pretrained("vq")
        assert "parts/codes/train: these codes were written by another tokenizer" in refusal(*command, "--out", "parts")
        shutil.rmtree("parts/codes")
        assert "parts holds a run on another tokenizer (" in aimamba(*command, "--out", "parts").err
        shutil.rmtree("parts/codes")
        shutil.rmtree("vq")
        Path("first").rename("vq")
        status, _, err = aimamba(*command, "--out", "parts")
        assert status == 0
        assert "continuing parts after step 3 of 6" in err
        assert same_model(recipes / "parts/model/generator", recipes / "whole/model/generator")
        assert metrics(recipes / "parts") == metrics(recipes / "whole")

    def test_a_run_of_a_version_with_fewer_settings_goes_on(self, trained, recipes, aimamba, refusal):
        shutil.copytree(trained / "runs/vq", "runs/vq")
        checkpoint = torch.load("runs/vq/checkpoint.pt")
        old = to_toml(tomllib.loads((recipes / "vq.toml").read_text()))  # what 0.1.0 wrote, and less
        torch.save({**checkpoint, "recipe": old}, "runs/vq/checkpoint.pt")
        (recipes / "runs/vq/model/recipe.toml").write_text(old)
        assert "is finished" in aimamba("train", "vq.toml", "--device", "cpu").err
        message = refusal("train", "vq.toml", "--steps", 4, "--device", "cpu", "--set", "data.flip=true")
        assert "runs/vq holds a run with data.flip False, now it is True" in message
        longer = aimamba("train", "vq.toml", "--steps", 4, "--device", "cpu")
        assert "continuing runs/vq after step 3 of 4" in longer.err

    def test_the_recipe_of_a_run_makes_the_same_run(self, trained, aimamba, here):
        status, _, _ = aimamba("train", trained / "runs/vq/recipe.toml", "--out", "again", "--device", "cpu")
        assert status == 0
        assert same_model(here / "again/model", trained / "runs/vq/model")
        assert (here / "again/recipe.toml").read_text() == (trained / "runs/vq/recipe.toml").read_text()

    def test_tensorboard_on_request(self, recipes, aimamba, refusal, here, monkeypatch):
        command = ["train", "vq.toml", "--steps", 1, "--device", "cpu", "--out", "elsewhere", "--tensorboard"]
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch.utils.tensorboard", None)
            assert "pip install 'aimamba[tensorboard]'" in refusal(*command)
        assert aimamba(*command).status == 0
        assert len(list((here / "elsewhere/tensorboard").glob("events.out.tfevents.*"))) == 1

    def test_results_alone_go_to_stdout(self, recipes, aimamba):
        _, out, err = aimamba("train", "vq.toml", "--steps", 1, "--device", "cpu", "--out", "elsewhere")
        assert out.startswith("elsewhere/model: 1 step, held out: ")
        assert out.count("\n") == 1
        assert "finished elsewhere" in err
        assert "model" in os.listdir("elsewhere")


class TestSettings:
    def test_a_packaged_recipe_with_flags(self, aimamba, here):
        flags = "--data avatars:planets,sprouts --lr 0.5 --seed 7 --set fit.lr=1e-3 --set fit.betas=[0.8,0.9]"
        status, out, _ = aimamba("train", "avatars-tiny-vq", *shlex.split(f"{TINY} {flags}"))
        assert status == 0
        assert out.startswith("runs/avatars-tiny-vq/model: 1 step")
        recipe = tomllib.loads((here / "runs/avatars-tiny-vq/recipe.toml").read_text())
        assert recipe["data"]["source"] == "avatars:planets,sprouts"
        assert (recipe["data"]["size"], recipe["data"]["per_class"], recipe["model"]["channels"]) == (16, 4, 8)
        wanted = {"steps": 1, "batch_size": 4, "lr": 1e-3, "seed": 7, "betas": [0.8, 0.9]}
        assert wanted.items() <= recipe["fit"].items()

    def test_images_of_ones_own(self, aimamba, photos, here):
        photos.rename(here / "2024")  # a text, though it could be a number
        assert aimamba("train", "avatars-tiny-vq", "--data", "2024", "--out", "1", *shlex.split(TINY)).status == 0
        recipe = tomllib.loads((here / "1/recipe.toml").read_text())
        assert recipe["data"]["source"] == "2024"
        flags = """--data 2024 --tokenizer 1 --size 16 --steps 1 --batch-size 4 --device cpu --set model.width=16
        --set model.num_blocks=1 --set model.head_width=8 --set task.sheet_pictures=1"""
        assert aimamba("train", "avatars-tiny-aim", "--out", "true", *shlex.split(flags)).status == 0
        assert Pipeline.from_pretrained("true").class_names == ("cats", "dogs")

    @pytest.mark.filterwarnings("default")
    def test_a_broken_image_is_named_or_refused(self, aimamba, photos):
        broken = photos / "dogs" / "5.png"
        broken.write_bytes(b"")
        command = ["train", "avatars-tiny-vq", "--data", photos, *shlex.split(TINY), "--set", "data.per_class=99"]
        status, out, err = aimamba(*command, "--strict")
        assert (status, out) == (2, "")
        assert err.startswith(f"aimamba: {broken}: the file is empty (0 bytes)")
        status, _, err = aimamba(*command)
        assert status == 0
        assert f"aimamba: {broken}: the file is empty (0 bytes); it is skipped\n" in err

    def test_another_recipe_in_the_same_folder(self, trained, refusal, monkeypatch):
        monkeypatch.chdir(trained)
        message = refusal("train", "vq.toml", "--lr", 0.5, "--device", "cpu")
        assert "runs/vq holds a run with fit.lr 0.001, now it is 0.5" in message


class TestReference:
    def test_the_list_of_recipes(self, aimamba):
        status, out, err = aimamba("train", "--list")
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert [line.split()[0] for line in lines] == recipe_names()
        assert lines[recipe_names().index("avatars-64-vq")].endswith("  avatars at 64 pixels as 8 x 8 codes from 2,048")

    def test_a_recipe_to_copy(self, aimamba, recipes):
        status, out, _ = aimamba("train", "--show", "avatars-tiny-vq")
        assert status == 0
        Path("copy.toml").write_text(out)
        assert load_recipe("copy.toml") == load_recipe("avatars-tiny-vq")
        assert "#   aimamba train avatars-tiny-vq" in out
        assert aimamba("train", "--show", "vq.toml").out == Path("vq.toml").read_text()

    def test_all_settings(self, aimamba):
        status, out, _ = aimamba("train", "--settings")
        assert status == 0
        page = (Path(__file__).parents[2] / "docs/settings.md").read_text(encoding="utf-8")
        assert out == page, "write it again: aimamba train --settings > docs/settings.md"


class TestQuietAndWorkers:
    def test_quiet_prints_the_result_alone(self, trained, recipes, aimamba):
        for command in (["vq.toml"], ["aim.toml", "--tokenizer", trained / "runs/vq"]):
            status, out, err = aimamba("train", *command, "--steps", 1, "--device", "cpu", "--out", "run", "--quiet")
            assert status == 0
            assert out.startswith("run/model: 1 step, held out: ")
            assert err == ""
            shutil.rmtree("run")

    def test_workers_change_nothing_and_may_change(self, recipes, photos, aimamba):
        command = ["train", "vq.toml", "--data", photos, "--device", "cpu", "--set", "data.flip=true"]
        assert aimamba(*command, "--out", "none").status == 0
        assert aimamba(*command, "--out", "parts", "--steps", 3, "--workers", 2).status == 0
        assert same_model(Path("parts/model"), Path("none/model"))
        status, _, err = aimamba(*command, "--out", "parts", "--steps", 4, "--workers", 1)
        assert status == 0
        assert "continuing parts after step 3 of 4" in err
        assert multiprocessing.active_children() == []

    def test_an_interruption_ends_the_workers(self, recipes, photos, aimamba, monkeypatch):
        loss = TokenizerTask.loss

        def interrupted(*arguments, **options):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGINT)  # as a terminal does
            signal.raise_signal(signal.SIGINT)
            return loss(*arguments, **options)

        monkeypatch.setattr(TokenizerTask, "loss", interrupted)
        status, _, err = aimamba("train", "vq.toml", "--data", photos, "--device", "cpu", "--workers", 2)
        assert status == 130
        assert err.splitlines()[-1].startswith("aimamba: stopped after step 1 of 3; the same command continues")
        assert "Traceback" not in err
        assert multiprocessing.active_children() == []


def test_the_recipe_of_a_run_describes_what_it_was_trained_on(recipes, photos, aimamba):
    command = ["train", "avatars-tiny-vq", "--data", photos, "--out", "run", *shlex.split(TINY)]
    assert aimamba(*command).status == 0
    for path in ("run/recipe.toml", "run/model/recipe.toml"):
        description = tomllib.loads(Path(path).read_text())["description"]
        assert description == f"a tokenizer for {photos} at 16 pixels, from the recipe avatars-tiny-vq"


@pytest.mark.parametrize("arguments", REFUSALS)
def test_refusals(refusal, trained, recipes, photos, arguments):
    (recipes / "empty").mkdir()
    (recipes / "no.toml").write_text("no recipe")
    message = refusal("train", *arguments.replace("VQ", str(trained / "runs/vq")).split())
    for part in REFUSALS[arguments]:
        assert part in message
    assert not (recipes / "runs").exists()


@pytest.mark.parametrize("name", ["2024", "true", "photos \N{FROG FACE}", 'a"b\\c', "a\x7fb\nc"])
def test_any_name_of_a_folder_reaches_the_recipe(name):
    from aimamba.cli.arguments import Parser
    from aimamba.cli.train import _overrides, add_arguments
    from aimamba.train.recipe import load_recipe

    parser = Parser(prog="aimamba train")
    add_arguments(parser)
    given = parser.parse_args(["avatars-tiny-vq", "--data", name])
    assert load_recipe("avatars-tiny-vq", _overrides(given)).data.source == name


def test_a_name_outside_utf8_is_refused(refusal):
    message = refusal("train", "avatars-tiny-vq", "--data", "caf\udce9", "--steps", "1")
    assert "not valid UTF-8, so recipe.toml cannot record it; rename" in message
