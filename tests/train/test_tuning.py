"""A generator that goes on from another one: classes, frozen parts, LoRA."""

import json
import sys

import pytest
import torch
from test_stages import CPU, DATA, recipe
from torch.testing import assert_close

from aimamba.checkpoints.checkpoint import open_checkpoint
from aimamba.errors import CheckpointError, ConfigError
from aimamba.generation import SamplingConfig
from aimamba.models import AiM
from aimamba.models.lora import merged
from aimamba.pipeline import Pipeline
from aimamba.train import generator
from aimamba.train.ema import ExponentialAverage
from aimamba.train.fit import FitConfig, fit
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.optim import adamw
from aimamba.train.stages import make_task, resolved
from aimamba.train.stopped import open_stopped
from aimamba.train.tuning import choose_trained, class_table
from refusals import one_line_error

LORA = {"lora_rank": 2}

pytestmark = pytest.mark.usefixtures("here")
TABLE = "condition.table.weight"


@pytest.fixture
def given(here, make_aim, make_vq):
    """A pipeline in the folder ``given``, with three classes of which the images have the second."""
    vq = make_vq()
    model = make_aim(num_tokens=64, num_classes=3, width=32, tokenizer=vq.code_fingerprint())
    Pipeline(vq, model, ("cats", "Thumbs", "dogs")).save_pretrained(here / "given")
    return model


def make(**sections):
    """Make the task of a recipe that starts from ``given``; images are of the classes thumbs and landscape."""
    made = recipe("generator", init="given", **{**sections, "task": {"tokenizer": "", **sections.get("task", {})}})
    return make_task(made, device=CPU)


def make_from(settings, *, codes):
    """The same, with codes that are kept, as for a run that is looked at while it is stopped."""
    return make_task(recipe("generator", init="given", task=settings), device=CPU, codes=codes)


def table_of(**options):
    options = {"own": ("cats", "dogs"), "images": ("dogs", "birds"), "classes": "match", "rows": 2} | options
    return class_table(**options, init="given")


class TestClasses:
    @pytest.mark.parametrize(
        ("options", "names", "rows", "labels"),
        [
            ({}, ("dogs", "birds"), (1, None), (0, 1)),
            ({"classes": "extend"}, ("cats", "dogs", "birds"), (0, 1, None), (1, 2)),
            ({"classes": "number"}, ("dogs", "birds"), (0, 1), (0, 1)),
            ({"classes": "new"}, ("dogs", "birds"), (None, None), (0, 1)),
            ({"images": ("DOGS ",)}, ("DOGS ",), (1,), (0,)),
            ({"own": ()}, ("dogs", "birds"), (0, 1), (0, 1)),  # without names, equal numbers are all there is
            ({"own": (), "rows": 5}, ("dogs", "birds"), (None, None), (0, 1)),
            ({"images": ("1",)}, ("1",), (None,), (0,)),  # a folder named 1 is not class number 1
        ],
    )
    def test_rows_and_labels(self, options, names, rows, labels):
        assert table_of(**options)[:3] == (names, rows, labels)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"images": ("dogs", "Dogs")}, "'dogs' and 'Dogs' of the images are both 'dogs' of given; put their"),
            ({"own": ("Dogs", "DOGS")}, "'dogs' of the images could be 'Dogs', 'DOGS' of given; write the exact name"),
            ({"classes": "extend", "own": ()}, "those of given have no names; use 'new'"),
            ({"classes": "number", "rows": 3}, "needs as many classes of images as given has, 3, got 2; use 'match'"),
        ],
    )
    def test_what_is_ambiguous_is_refused(self, options, message):
        with one_line_error(ConfigError, match=message):
            table_of(**options)

    def test_a_table_by_name(self, given):
        task = make()
        old, new = given.condition.table.weight, task.model.condition.table.weight
        assert task.class_names == ("thumbs", "landscape")
        assert torch.equal(new, old[[1, 3, 3]])
        weights = given.state_dict()
        assert all(torch.equal(w, weights[name]) for name, w in task.model.state_dict().items() if name != TABLE)
        assert all(weight.requires_grad for weight in task.model.parameters())

    def test_the_classes_of_the_model_stay(self, given, here, monkeypatch):
        task = make(task={"classes": "extend", "sheet_pictures": 1})
        assert task.class_names == ("cats", "Thumbs", "dogs", "landscape")
        assert sorted(set(task.train.labels)) == sorted(set(task.held_out.labels)) == [1, 3]
        assert torch.equal(task.model.condition.table.weight, given.condition.table.weight[[0, 1, 2, 3, 3]])
        rendered = []
        render = generator.sheet
        monkeypatch.setattr(generator, "sheet", lambda *rows, **names: rendered.append(names) or render(*rows, **names))
        task.sheet(task.model.eval())
        assert rendered == [{"row_names": ["Thumbs", "landscape"]}], "those with images"
        task.save(task.model, here / "saved")
        assert Pipeline.from_pretrained(here / "saved").class_names == task.class_names

    def test_another_tokenizer_is_refused_unless_it_is_asked_for(self, given, make_vq, here):
        make_vq(seed=1).save_pretrained(here / "other")
        with one_line_error(ConfigError, match=r"^given was trained with .*task.foreign_tokenizer = true"):
            make(task={"tokenizer": "other"})
        other = make(task={"tokenizer": "other", "foreign_tokenizer": True})
        assert other.model.config.tokenizer == make_vq(seed=1).code_fingerprint()

    def test_the_size_of_the_images_is_that_of_init(self, given):
        assert make(data={"size": 0}).model.config.num_tokens == 64
        with one_line_error(ConfigError, match=r"^data.size = 0 is the size of the images of 'init', which is not set"):
            make_task(recipe("generator", data={"size": 0}, task={"tokenizer": "given"}), device=CPU)
        with one_line_error(ConfigError, match=r"^data.size = 0 is .* give the size in pixels"):
            make_task(recipe("tokenizer", data={"size": 0}), device=CPU)


class TestTrained:
    @pytest.mark.parametrize(
        ("chosen", "learning"),
        [
            ("classes", {"condition"}),
            (("embeddings", "adaln"), {"word_embedding", "position_embedding", "adaln", "final_adaln"}),
            ("blocks", {"blocks", "norm", "final_norm"}),
        ],
    )
    def test_other_parts_stay_bit_for_bit(self, given, here, chosen, learning):
        fresh = chosen == "classes"
        styles = "thumbs,landscape" if fresh else "thumbs,landscape,planets"
        options = {"train": chosen, "classes": "new" if fresh else "number"}
        task = make(task=options, data={"source": f"avatars:{styles}"})
        before = {name: weight.detach().clone() for name, weight in task.model.named_parameters()}
        fit(task, FitConfig(steps=3, batch_size=2, lr=1e-2, ema_decay=0.9), here / "run")
        saved = torch.load(here / "run" / "checkpoint.pt")["parts"]
        moments = len(saved["optimizer"]["state"])
        changed = {name for name, weight in task.model.named_parameters() if not torch.equal(weight, before[name])}
        assert {name.partition(".")[0] for name in changed} == learning
        assert moments == sum(weight.requires_grad for weight in task.model.parameters())
        averaged = saved["average"]["model"]
        assert all(torch.equal(averaged[name], weight) for name, weight in before.items() if name not in changed)

    def test_frozen_weights_take_no_memory_of_average_and_optimiser(self, make_aim):
        model = make_aim()
        choose_trained(model, GeneratorTaskConfig(tokenizer="x", train="classes"))
        average = ExponentialAverage(model, 0.5)
        model.condition.table.weight.data += 1
        average.prepare()
        average.update(model, torch.zeros(()))
        own = [name for name, weight in average.model.named_parameters() if weight is not model.get_parameter(name)]
        assert own == [TABLE]
        assert [len(group["params"]) for group in adamw(
            model, lr=1.0, betas=(0.9, 0.9), weight_decay=0.1).param_groups] == [1]  # fmt: skip

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"train": "heads"}, "train must be one of 'auto', 'all' or one of 'classes', .*got 'heads'"),
            ({"train": []}, "task.train must name each part once, and one at least, got "),
            ({"train": ["adaln", "adaln"]}, "task.train must name each part once"),
            ({"train": "blocks", **LORA}, "task.train trains the blocks whole, which LoRA is to spare"),
            ({"train": "all", **LORA}, "task.train trains the blocks whole, which LoRA is to spare"),
            ({"train": "adaln"}, "task.train leaves out 'classes', but 1 of them have no vector in given yet; add it"),
            ({"lora_rank": -1}, "task.lora_rank must not be negative, got -1"),
            ({"lora_rank": 2, "lora_alpha": 0.0}, "task.lora_alpha must be positive, got 0"),
            ({"lora_rank": 2, "lora_layers": []}, "task.lora_layers names no layer"),
            ({"classes": "keep"}, "classes must be one of 'match', 'extend', 'number', 'new', got 'keep'"),
        ],
    )
    def test_bad_settings(self, given, settings, message):
        with one_line_error(ConfigError, match=message):
            make(task=settings)

    @pytest.mark.parametrize("settings", [LORA, {"train": "classes"}, {"classes": "new"}, {"foreign_tokenizer": True}])
    def test_they_are_for_a_generator_with_init(self, settings):
        with one_line_error(ConfigError, match=rf"^task.{next(iter(settings))} .* name that in 'init' or with --init"):
            make_task(recipe("generator", task=settings), device=CPU)

    def test_lora_without_peft(self, given, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with one_line_error(ConfigError, match=r"needs peft; install it with pip install 'aimamba\[lora\]'"):
            make(task=LORA)


class TestLora:
    @pytest.fixture(autouse=True)
    def peft(self):
        return pytest.importorskip("peft")

    @pytest.fixture
    def task(self, given):
        """A task with LoRA whose matrices all have an effect."""
        task = make(task={**LORA, "lora_alpha": 3.0})
        for name, weight in task.model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        return task

    def test_it_starts_as_the_model_it_adapts(self, given):
        task = make(task={**LORA, "classes": "extend"})
        codes, labels = torch.randint(24, (2, 63)), torch.tensor([0, 2])
        with torch.no_grad():
            assert torch.equal(task.model(codes, labels), given(codes, labels))
        learning = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
        assert {name.rpartition(".lora_")[0] or name for name in learning} == {
            TABLE, *(f"blocks.{i}.mixer.{layer}" for i in range(2) for layer in ("in_proj", "out_proj"))
        }  # fmt: skip

    def test_the_loss_of_a_step_and_its_gradients_are_those_of_merged_weights(self, task):
        batch = next(task.batches(0, 2))
        loss, _ = task.loss(task.model.train(), batch, torch.Generator().manual_seed(0))
        loss.backward()
        plain = merged(task.model).requires_grad_(True)
        other, _ = task.loss(plain.train(), batch, torch.Generator().manual_seed(0))
        other.backward()
        assert_close(loss, other)
        layer, merged_layer = task.model.blocks[0].mixer.in_proj, plain.blocks[0].mixer.in_proj
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert_close(b.grad, 1.5 * merged_layer.weight.grad @ a.T, rtol=1e-4, atol=1e-6)
        assert_close(a.grad, 1.5 * b.T @ merged_layer.weight.grad, rtol=1e-4, atol=1e-6)
        assert layer.base_layer.weight.grad is None

    def test_the_file_holds_no_frozen_weights_and_peft_reads_it(self, task, given, here, peft):
        task.save(task.model.eval(), here / "saved")
        folder = here / "saved" / "generator"
        assert {path.name for path in folder.iterdir()} == {
            "config.json", "adapter_config.json", "adapter_model.safetensors"
        }  # fmt: skip
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(here / "given")
        assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (2, 3.0, ["condition.table"])
        codes, labels = torch.randint(24, (2, 63)), torch.tensor([0, 1])
        ours = Pipeline.from_pretrained(here / "saved").generator
        base = make().model.eval()  # the frozen weights, with room for the new classes
        theirs = peft.PeftModel.from_pretrained(base, folder)
        with torch.no_grad():
            wanted = task.model(codes, labels)
            assert_close(ours(codes, labels), wanted)
            assert_close(theirs(codes, labels), wanted)
        assert not torch.equal(wanted, given(codes, torch.tensor([1, 3])))
        assert type(ours) is AiM
        assert not [name for name, _ in ours.named_parameters() if "lora" in name]

    @pytest.mark.parametrize("engine", ["plain", "auto"])
    def test_samples_are_those_of_merged_weights(self, task, here, engine):
        task.save(task.model.eval(), here / "saved")
        adapted = Pipeline.from_pretrained(here / "saved", engine=engine)
        adapted.save_pretrained(here / "whole")
        whole = Pipeline.from_pretrained(here / "whole", engine=engine)
        config = SamplingConfig(seed=3, cfg_scale=1.5)
        images = [each(["thumbs", "landscape"], 1, config) for each in (adapted, whole, task.pipeline(task.model))]
        assert images[0] == images[1] == images[2]

    def test_a_stopped_run_goes_on_exactly_and_can_be_sampled_from(self, given, here):
        options = {**LORA, "train": ["classes", "adaln"], "tokenizer": ""}
        settings = {"batch_size": 2, "lr": 1e-2, "ema_decay": 0.9, "schedule": "constant"}
        values = {"stage": "generator", "init": "given", "data": DATA, "task": options}

        def train(out, steps):
            config = FitConfig(steps=steps, **settings)
            fit(lambda: make_from(options, codes=out / "codes"), config, out, recipe=values, resolve=resolved)

        for out, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
            train(here / out, steps)
        one, two = (AiM.from_pretrained(here / out).state_dict() for out in ("whole", "parts"))
        assert all(torch.equal(weight, two[name]) for name, weight in one.items())
        (here / "parts" / "model").rename(here / "kept")
        stopped = open_stopped(here / "parts")
        assert stopped.class_names == ("thumbs", "landscape")
        assert all(torch.equal(weight, two[name]) for name, weight in stopped.model.state_dict().items())

    def test_another_base_is_refused(self, task, given, here):
        task.save(task.model, here / "saved")
        config = json.loads((here / "saved" / "generator" / "adapter_config.json").read_text())
        with torch.no_grad():
            given.norm.weight += 1
        Pipeline(task.tokenizer, given, ("a", "b", "c")).save_pretrained(here / "given")
        with one_line_error(CheckpointError, match=r"its base model .*given has other weights now than in training"):
            Pipeline.from_pretrained(here / "saved")
        (here / "given").rename(here / "moved")
        with one_line_error(CheckpointError, match=r"holds LoRA alone, and its base model cannot be.*new place$"):
            open_checkpoint(here / "saved").read("generator")
        path = here / "saved" / "generator" / "adapter_config.json"
        path.write_text(json.dumps({**config, "base_model_name_or_path": str(here / "saved")}))
        with one_line_error(CheckpointError, match="saved: is this adapter itself"):
            open_checkpoint(here / "saved").read("generator")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"lora_rank": 33}, "task.lora_rank must be at most 32, the width of blocks.0.mixer.in_proj, got 33"),
            ({"lora_layers": ["in_prj"]}, r"no linear layer 'in_prj' \(did you mean 'in_proj'"),
            (
                {"lora_layers": ["final_adaln"], "train": ["classes", "adaln"]},
                "trains 'adaln' whole, and",
            ),
        ],
    )
    def test_layers_that_do_not_fit(self, given, settings, message):
        with one_line_error(ConfigError, match=message):
            make(task={**LORA, **settings})
