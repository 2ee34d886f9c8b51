"""From a recipe to a task."""

import dataclasses
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from aimamba.config import from_mapping, to_mapping
from aimamba.data import sets
from aimamba.data.encoding import encode_to_shards
from aimamba.errors import CheckpointError, ConfigError, DataError
from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiMConfig, VQConfig, VQModel
from aimamba.train import stages
from aimamba.train.generator import GeneratorTask
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.recipe import Recipe, load_recipe, recipe_names
from aimamba.train.stages import make_task, resolved
from aimamba.train.task import Task
from aimamba.train.tokenizer import TokenizerTask, TokenizerTaskConfig
from aimamba.train.toml import to_toml
from refusals import one_line_error

CPU = torch.device("cpu")
DATA = {"source": "avatars:thumbs,landscape", "size": 16, "per_class": 4, "held_out_per_class": 2}
FIT = {"steps": 1, "batch_size": 2, "lr": 1e-3, "seed": 5}
VQ = {
    "channels": 8,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "z_channels": 8,
    "codebook_size": 24,
    "codebook_dim": 4,
    "norm_groups": 4,
    "attention": False,
}
AIM = {"width": 16, "num_blocks": 1, "state_size": 4, "head_width": 8}

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def tokenizer(make_vq, here):
    """A tokenizer in the folder ``vq``."""
    vq = make_vq()
    vq.save_pretrained(here / "vq")
    return vq


def recipe(stage, *, init=None, **sections):
    model = VQ if stage == "tokenizer" else AIM
    task = {} if stage == "tokenizer" else {"tokenizer": "vq"}
    values = {"data": DATA, "model": model, "fit": FIT, "task": task}
    merged = {name: {**value, **sections.get(name, {})} for name, value in values.items()}
    return from_mapping(Recipe, {"stage": stage, "init": init, **merged}, where="test")


def make(stage, **sections):
    return make_task(recipe(stage, **sections), device=CPU)


def same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


class TestBoth:
    @pytest.mark.parametrize(("stage", "kind"), [("tokenizer", TokenizerTask), ("generator", GeneratorTask)])
    def test_the_kind_of_task(self, tokenizer, stage, kind):
        task = make(stage, fit={"seed": 11})
        assert isinstance(task, kind)
        assert isinstance(task, Task)
        assert task.seed == 11

    @pytest.mark.parametrize("stage", ["tokenizer", "generator"])
    def test_the_weights_come_from_the_seed(self, tokenizer, stage):
        first = make(stage).model
        torch.manual_seed(123)
        assert same_weights(first, make(stage).model)
        assert not same_weights(first, make(stage, fit={"seed": 6}).model)

    @pytest.mark.parametrize("stage", ["tokenizer", "generator"])
    def test_sizes_must_be_multiples_of_the_down_sampling(self, tokenizer, stage):
        with pytest.raises(ConfigError, match=r"^data.size must be a multiple of .* 2, got 17$"):
            make(stage, data={"size": 17})

    @pytest.mark.parametrize(("stage", "near"), [("tokenizer", "vq-f16"), ("generator", "aim-xl")])
    def test_unknown_presets(self, tokenizer, stage, near):
        with pytest.raises(ConfigError, match=f"unknown model.preset '{near}x'.*did you mean '{near}'.*known presets"):
            make(stage, model={"preset": f"{near}x"})

    @pytest.mark.parametrize("stage", ["tokenizer", "generator"])
    @pytest.mark.parametrize("section", ["model", "task"])
    def test_unknown_settings(self, tokenizer, stage, section):
        with pytest.raises(ConfigError, match=f"^recipe: {section}: unknown key 'colour'"):
            make(stage, **{section: {"colour": 1}})

    def test_images_as_the_recipe_has_them(self, tokenizer, monkeypatch):
        opened, open_images = [], sets.open_images
        monkeypatch.setattr(
            sets,
            "open_images",
            lambda *names, **options: opened.append(options) or open_images(*names, **options),
        )
        make("tokenizer", data={"flip": True, "crop": "random", "strict": True, "skip_per_class": 1})
        train, held_out = opened
        assert train["skip_per_class"] == 1
        assert "skip_per_class" not in held_out
        assert (train["split"], train["crop"], train["flip"], train["per_class"]) == ("train", "random", True, 4)
        assert held_out["split"] == "held-out"
        assert {"crop", "flip"}.isdisjoint(held_out)
        assert held_out["per_class"] == 2
        assert train["strict"]
        assert train["size"] == held_out["size"] == 16


class TestTokenizer:
    def test_it(self):
        task = make("tokenizer", task={"l1_weight": 0.5})
        assert task.train.class_names == ("thumbs", "landscape")
        assert (len(task.train), len(task.held_out)) == (8, 4)
        assert task.config.l1_weight == 0.5
        assert (task.model.config.channels, task.model.config.channel_mult) == (8, (1, 2))

    def test_what_is_set_goes_over_the_preset(self, monkeypatch, make_vq):
        preset = make_vq(codebook_size=32).config
        monkeypatch.setattr(stages, "VQ_PRESETS", {"small": preset})
        values = {"preset": "small", "z_channels": 12}
        task = make_task(dataclasses.replace(recipe("tokenizer"), model=values), device=CPU)
        assert task.model.config == dataclasses.replace(preset, z_channels=12)

    def test_the_decoder_alone_needs_a_trained_tokenizer(self, tokenizer):
        task = make_task(recipe("tokenizer", init="vq", task={"decoder_only": True}), device=CPU)
        assert not task.model.codebook.requires_grad
        with pytest.raises(ConfigError, match=r"^task.decoder_only .* name it in 'init' or with --init$"):
            make("tokenizer", task={"decoder_only": True})

    def test_it_is_not_compiled(self):
        with pytest.raises(ConfigError, match=r"^fit.compile is for generators"):
            make("tokenizer", fit={"compile": True})

    def test_bad_data_is_found_before_the_model_is_built(self, monkeypatch):
        monkeypatch.setattr(stages, "VQModel", None)
        with pytest.raises(DataError, match="nowhere"):
            make("tokenizer", data={"source": "nowhere"})


class TestGenerator:
    def test_the_tokenizer_and_the_images_decide(self, tokenizer):
        config = make("generator").model.config
        assert (config.vocab_size, config.num_tokens, config.num_classes) == (24, 64, 2)
        assert (config.width, config.num_blocks) == (16, 1)

    @pytest.mark.parametrize(("name", "value"), [("vocab_size", 24), ("num_tokens", 64), ("num_classes", 2)])
    def test_a_recipe_may_say_so_but_not_otherwise(self, tokenizer, name, value):
        make("generator", model={name: value})
        with pytest.raises(ConfigError, match=rf"model.{name} is {value} .* says {value + 1}; leave it out"):
            make("generator", model={name: value + 1})

    @pytest.mark.parametrize("flip", [False, True])
    def test_codes(self, tokenizer, flip):
        task = make("generator", data={"flip": flip})
        assert task.train.shards[0].shape == (8, 1 + flip, 64)
        assert task.held_out.shards[0].shape == (4, 1, 64), "held-out images are not mirrored"
        assert task.train.labels.tolist() == [0] * 4 + [1] * 4
        assert task.class_names == ("thumbs", "landscape")
        images = make("tokenizer").held_out
        image = torch.from_numpy(np.stack([images.image(3)])).permute(0, 3, 1, 2) / 127.5 - 1
        assert task.held_out.shards[0][3, 0].tolist() == tokenizer.encode(image).flatten().tolist()

    def test_the_tokenizer_is_kept_for_the_sheet(self, tokenizer):
        task = make("generator")
        assert isinstance(task.tokenizer, VQModel)
        assert same_weights(task.tokenizer, tokenizer)
        assert not task.tokenizer.training

    def test_long_steps_are_logged(self, tokenizer):
        logged = []
        make_task(recipe("generator"), device=CPU, log=logged.append)
        assert logged == ["encoding 12 images with vq"]

    def test_no_tokenizer(self):
        with pytest.raises(CheckpointError, match=r"^vq: no such file or folder"):
            make("generator")
        with pytest.raises(CheckpointError, match=r"train it first \('aimamba train avatars-tiny-vq'\).*--tokenizer"):
            make("generator", task={"tokenizer": "runs/avatars-tiny-vq"})
        values = dataclasses.replace(recipe("generator"), task={})
        with pytest.raises(ConfigError, match=r"^task.tokenizer is missing; .* --tokenizer"):
            make_task(values, device=CPU)

    def test_random_crops_cannot_be_encoded_once(self, tokenizer):
        with pytest.raises(ConfigError, match=r"data.crop must be 'center' for a generator"):
            make("generator", data={"crop": "random"})


class TestKeptCodes:
    """The codes of a generator's images, beside its run."""

    def again(self, logged, **sections):
        return make_task(recipe("generator", **sections), device=CPU, codes=Path("run/codes"), log=logged.append)

    @pytest.mark.parametrize("flip", [False, True])
    def test_images_are_encoded_once(self, tokenizer, here, flip, monkeypatch):
        logged = []
        data = {"flip": flip}
        first = self.again(logged, data=data)
        assert len(logged) == 1
        assert sorted(path.name for path in (here / "run").iterdir()) == ["codes"]
        with monkeypatch.context() as patch:
            patch.setattr(stages, "open_splits", lambda *names, **options: pytest.fail("opened"))
            second = self.again(logged, data=data)
        assert len(logged) == 1
        assert second.class_names == first.class_names == ("thumbs", "landscape")
        in_memory = make("generator", data=data)
        for task in (first, second):
            for part, same in ((task.train, in_memory.train), (task.held_out, in_memory.held_out)):
                assert part.labels.tolist() == same.labels.tolist()
                assert np.array_equal(np.concatenate(part.shards), np.concatenate(same.shards))
            assert task.basis() == in_memory.basis()

    def test_an_encoding_that_was_stopped_leaves_nothing_behind(self, tokenizer, here, monkeypatch):
        def stop(*names, **options):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(stages, "write_description", stop)
            with pytest.raises(KeyboardInterrupt):
                self.again([])
        assert not (here / "run/codes").exists()
        self.again([], data={"source": "avatars:landscape,thumbs"})
        assert sorted(path.name for path in (here / "run").iterdir()) == ["codes"]

    def test_codes_of_another_tokenizer_or_other_images_are_refused(self, tokenizer, make_vq, here):
        self.again([])
        with pytest.raises(ConfigError, match=r"run/codes holds the codes of other images; remove it, or give"):
            self.again([], data={"per_class": 3})
        make_vq(seed=1).save_pretrained(here / "vq")
        with pytest.raises(DataError, match="written by another tokenizer"):
            self.again([])

    def test_a_note_without_a_setting_of_today_stands_for_its_default(self, tokenizer, here):
        self.again(logged := [])
        note = here / "run/codes/data.toml"
        text = note.read_text()
        note.write_text(text.replace("strict = false\n", ""))
        assert note.read_text() != text
        self.again(logged)
        assert len(logged) == 1

    def test_a_folder_called_codes_that_is_not_ours_is_left_alone(self, tokenizer, here):
        (here / "run/codes").mkdir(parents=True)
        with pytest.raises(ConfigError, match="was not made by a training run"):
            self.again([])

    def test_the_basis_is_of_tokenizer_and_codes(self, tokenizer, make_vq, here):
        task = make("generator")
        assert task.basis().keys() == {"tokenizer", "set of codes"}
        others = make("generator", data={"source": "avatars:landscape,thumbs"})
        assert others.basis()["tokenizer"] == task.basis()["tokenizer"]
        assert others.basis()["set of codes"] != task.basis()["set of codes"]
        make_vq(seed=1).save_pretrained(here / "vq")
        assert make("generator").basis()["tokenizer"] != task.basis()["tokenizer"]

    def test_held_out_codes_of_other_classes_are_refused(self, tokenizer, here):
        for split, source in (("train", "avatars:thumbs"), ("held-out", "avatars:landscape")):
            images = sets.open_images(source, size=16, split=split, per_class=2)
            encode_to_shards(tokenizer, images, here / "codes" / split)
        with pytest.raises(DataError, match="differ in classes; encode both together"):
            make("generator", data={"source": "codes"})


class TestResolved:
    """All settings of a recipe."""

    def test_what_is_left_out_is_filled_in(self):
        model, task = {"width": 64, "num_tokens": 9}, {"tokenizer": "vq"}
        full = resolved({"stage": "generator", "fit": FIT, "model": model, "task": task})
        assert full["data"]["source"] == "avatars"
        assert full["fit"]["clip_norm"] == 1.0
        from_codes = {"vocab_size", "num_tokens", "num_classes"}
        shape = to_mapping(AiMConfig(width=64)).items()
        assert full["model"] == {name: value for name, value in shape if name not in from_codes}
        assert full["task"] == to_mapping(GeneratorTaskConfig(tokenizer="vq"))
        assert resolved(full) == full

    def test_a_preset_is_the_same_as_its_settings(self):
        values = {"stage": "tokenizer", "fit": FIT}
        short = resolved({**values, "model": {"preset": "vq-f16", "channels": 64}})
        assert short == resolved({**values, "model": {**to_mapping(VQ_PRESETS["vq-f16"]), "channels": 64}})
        assert short["model"]["channels"] == 64
        assert "preset" not in short["model"]

    def test_with_given_weights_the_shape_decides_nothing(self):
        values = {"stage": "tokenizer", "init": "vq", "fit": FIT}
        assert resolved({**values, "model": {"channels": 64}}) == resolved(values)
        assert resolved(values)["init"] == "vq"

    @pytest.mark.parametrize("name", recipe_names())
    def test_packaged_recipes(self, name):
        values = to_mapping(load_recipe(name))
        full = resolved(values)
        assert tomllib.loads(to_toml(full)) == full
        assert resolved(full) == full


class TestInit:
    """Starting from given weights."""

    def test_without_it_the_recipe_of_a_run_does_not_mention_it(self):
        assert "init" not in to_mapping(recipe("tokenizer"))
        assert to_mapping(recipe("tokenizer", init="vq"))["init"] == "vq"

    def test_a_tokenizer_keeps_shape_and_weights(self, tokenizer):
        task = make_task(recipe("tokenizer", init="vq", model={"channels": 16}), device=CPU)
        assert task.model.config == tokenizer.config
        assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), tokenizer.parameters(), strict=True))

    def test_the_codes_of_a_given_tokenizer_count_as_used(self, tokenizer):
        assert (make_task(recipe("tokenizer", init="vq"), device=CPU).use.use == 1).all()
        assert (make_task(recipe("tokenizer", init=None), device=CPU).use.use == 0).all()

    def test_a_loss_that_never_starts_is_noted(self, tokenizer):
        lines = []
        losses = {"perceptual_weight": 1.0, "perceptual_start": FIT["steps"]}
        make_task(recipe("tokenizer", init="vq", task=losses), device=CPU, log=lines.append)
        [line] = lines
        assert line.startswith("note: the perceptual loss never starts: task.perceptual_start = ")

    def test_a_generator_gets_a_new_class_table_for_other_classes(self, tokenizer, make_aim, here):
        given = make_aim(num_tokens=64, num_classes=5, decode_position_shift=1)
        given.save_pretrained(here / "given")
        model = make_task(recipe("generator", init="given"), device=CPU).model
        new = {"num_classes": 2, "decode_position_shift": 0, "tokenizer": tokenizer.code_fingerprint()}
        assert model.config == dataclasses.replace(given.config, **new)
        for name, tensor in model.state_dict().items():
            if name == "condition.table.weight":
                assert tensor.shape == (3, given.config.width)
                assert torch.equal(tensor[-1], given.state_dict()[name][-1])
            else:
                assert torch.equal(tensor, given.state_dict()[name])

    def test_a_generator_of_the_same_classes_keeps_its_table(self, tokenizer, make_aim, here):
        given = make_aim(num_tokens=64, num_classes=2)
        given.save_pretrained(here / "given")
        model = make_task(recipe("generator", init="given"), device=CPU).model
        assert torch.equal(model.condition.table.weight, given.condition.table.weight)

    def test_weights_that_are_not_finite_are_refused(self, tokenizer, make_aim, here):
        given = make_aim(num_tokens=64, num_classes=2)
        given.word_embedding.weight.data[3, 1] = math.nan
        given.save_pretrained(here / "given")
        with one_line_error(CheckpointError, match=r"^given: its weights hold NaN .* \(first in word_embedding.weight"):
            make_task(recipe("generator", init="given"), device=CPU)
        tokenizer.decoder.head.bias.data[0] = math.inf
        tokenizer.save_pretrained(here / "vq")
        for stage, init in (("tokenizer", "vq"), ("generator", None)):
            with one_line_error(CheckpointError, match=r"^vq: its weights hold NaN .* \(first in decoder.head.bias"):
                make_task(recipe(stage, init=init), device=CPU)

    def test_a_generator_of_other_codes_is_refused(self, tokenizer, make_aim, here):
        make_aim(num_tokens=9).save_pretrained(here / "given")
        with pytest.raises(ConfigError, match="given has num_tokens 9, but these images and this tokenizer need 64"):
            make_task(recipe("generator", init="given"), device=CPU)


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_hold_together(name):
    loaded = load_recipe(name)
    tokenizer = loaded.stage == "tokenizer"
    from_mapping(TokenizerTaskConfig if tokenizer else GeneratorTaskConfig, loaded.task, where=name)
    config, presets = (VQConfig, VQ_PRESETS) if tokenizer else (AiMConfig, AIM_PRESETS)
    shape = stages.model_config(config, presets, loaded.model)
    if "imagenet256" in name:
        assert shape == presets[name.removesuffix("-imagenet256")]
        assert "not run here" in loaded.description
        assert loaded.fit.batch_size * loaded.fit.steps / 1_281_167 == pytest.approx(
            40 if tokenizer else 300 if name.startswith(("aim-b", "aim-l")) else 350, rel=1e-3
        )
