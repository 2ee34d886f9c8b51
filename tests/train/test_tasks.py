"""The two stages: their losses, what they measure and what they show."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aimamba.data.codes import CodeBatch, CodeSet
from aimamba.data.loader import Batch
from aimamba.data.sheets import to_float
from aimamba.errors import ConfigError
from aimamba.models import VQModel
from aimamba.pipeline import Pipeline
from aimamba.train import generator as generator_module
from aimamba.train import tokenizer as tokenizer_module
from aimamba.train.generator import GeneratorTask, GeneratorTaskConfig
from aimamba.train.tokenizer import TokenizerTask, TokenizerTaskConfig

NAMES = ("planets", "sprouts", "robots", "shells", "cats")


class Noise(NamedTuple):
    """Smooth images of 8 pixels whose labels are given."""

    classes: tuple[int, ...]
    size: int = 8
    class_names: tuple[str, ...] = NAMES

    @property
    def labels(self):
        return np.array(self.classes, dtype=np.int64)

    def __len__(self):
        return len(self.classes)

    def image(self, index, rng=None):
        return np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rendered_sheets(monkeypatch, module):
    """What a module hands to ``sheet``."""
    calls, sheet = [], module.sheet
    monkeypatch.setattr(module, "sheet", lambda rows, **names: calls.append((rows, names)) or sheet(rows, **names))
    return calls


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


class TestTokenizer:
    @pytest.fixture
    def make(self, make_vq):
        def make(classes=(0, 1, 2, 3), **config):
            return TokenizerTask(make_vq(), Noise((0,) * 12), Noise(classes), TokenizerTaskConfig(**config), seed=3)

        return make

    @pytest.fixture
    def batch(self):
        return Batch(torch.randint(256, (5, 3, 8, 8), generator=rng(), dtype=torch.uint8), torch.zeros(5).long())

    @pytest.mark.parametrize(
        "weights",
        [
            {},
            {"l1_weight": 1.0, "l2_weight": 0.0, "codebook_weight": 0.0},
            {"l1_weight": 0.3, "l2_weight": 2.0, "codebook_weight": 0.7},
        ],
    )
    def test_the_loss_is_the_formula(self, make, batch, weights):
        task = make(**weights)
        total, report = task.loss(task.model, batch, rng(), 0)
        images = batch.images / 127.5 - 1
        output = task.model(images)
        latents = F.normalize(task.model.latents(images), dim=1)
        nearest = F.normalize(task.model.codebook, dim=-1)[output.codes].movedim(-1, 1)
        distance = (latents - nearest).square().mean()
        l1, l2 = (output.images - images).abs().mean(), (output.images - images).square().mean()
        w1, w2, wc = (weights.get(f"{name}_weight", value) for name, value in (("l1", 0), ("l2", 1), ("codebook", 1)))
        assert torch.allclose(total, w1 * l1 + w2 * l2 + wc * 1.25 * distance)
        for name, value in (("l1", l1), ("l2", l2), ("quantizer", 1.25 * distance)):
            assert torch.allclose(report[name], value)
            assert not report[name].requires_grad

    def test_every_part_learns(self, make, batch):
        task = make(l1_weight=1.0)
        task.loss(task.model.train(), batch, rng(), 0)[0].backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() for parameter in task.model.parameters())

    @pytest.mark.parametrize(("halvings", "codebook_size"), [(2, 256), (3, 4096), (4, 16384)])
    def test_down_samplings_and_codebooks(self, make_vq, halvings, codebook_size):
        model = make_vq(channel_mult=(1,) * (halvings + 1), codebook_size=codebook_size)
        images = Noise((0, 1, 2, 3), size=32)
        task = TokenizerTask(model, images, images, TokenizerTaskConfig(l1_weight=1.0))
        task.loss(model.train(), next(task.batches(0, 4)), rng(), 0)[0].backward()
        assert model.codebook.grad.any()
        latents = 4 * (32 >> halvings) ** 2
        assert (task.use.use > 0).sum() == min(codebook_size, latents), "as many codes as there are latents moved there"
        measured = task.evaluate(model.eval())
        assert math.isfinite(measured["psnr"])
        assert 1 <= measured["perplexity"] <= latents

    def test_the_decoder_alone_learns_if_asked(self, make, batch):
        task = make(decoder_only=True)
        before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
        task.loss(task.model.train(), batch, rng(), 0)[0].backward()
        learning = {name for name, parameter in task.model.named_parameters() if parameter.grad is not None}
        decoding = {name for name in before if name.startswith(("from_code.", "decoder."))}
        assert learning == decoding
        assert all(torch.equal(task.model.state_dict()[name], tensor) for name, tensor in before.items())

    def test_the_perceptual_loss_begins_at_its_start(self, make, batch, monkeypatch):
        monkeypatch.setattr(tokenizer_module, "perceptual_loss", lambda *_, **__: torch.nn.L1Loss())
        task, plain = make(perceptual_weight=0.5, perceptual_start=3), make()
        for step in (2, 3):
            (total, report), (without, _) = (one.loss(one.model.eval(), batch, rng(), step) for one in (task, plain))
            assert ("perceptual" in report) == (step == 3)
            assert torch.allclose(total, without + 0.5 * report.get("perceptual", torch.zeros(())))

    def test_codes_are_revived_in_training_alone(self, make, batch):
        task = make()
        before = task.model.codebook.detach().clone()
        task.loss(task.model.eval(), batch, rng(), 0)
        assert torch.equal(task.model.codebook, before)
        assert not task.use.use.any()
        task.loss(task.model.train(), batch, rng(), 0)
        assert (task.model.codebook != before).any(dim=-1).all(), "the codebook begins on the data"
        assert task.use.use.all()
        assert task.companions() == {"codebook_use": task.use}

    def test_randomness_comes_from_what_is_handed_in(self, make, batch):
        codebooks = []
        for seed in (0, 0, 1):
            task = make()
            state = torch.random.get_rng_state()
            task.loss(task.model.train(), batch, rng(seed), 0)
            assert torch.equal(torch.random.get_rng_state(), state)
            codebooks.append(task.model.codebook)
        assert torch.equal(codebooks[0], codebooks[1])
        assert not torch.equal(codebooks[0], codebooks[2])

    def test_an_image_with_nan_does_no_lasting_harm(self, make, batch, monkeypatch):
        task = make()
        latents = task.model.latents
        monkeypatch.setattr(task.model, "latents", lambda images: latents(images) * math.nan)
        total, _ = task.loss(task.model.train(), batch, rng(), 0)
        assert total.isnan(), "which fit leaves out"
        assert task.model.codebook.isfinite().all()
        assert task.use.use.isfinite().all()

    def test_batches_go_on_where_they_stopped(self, make):
        task = make()
        batches = task.batches(0, 4)
        whole = [next(batches) for _ in range(5)]
        batches = task.batches(12, 4)
        for expected in whole[3:]:
            batch = next(batches)
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.labels, expected.labels)

    def test_the_codebook_alone_is_spared_from_decay(self, make):
        task = make()
        assert [name for name, _ in task.model.named_parameters() if task.no_weight_decay(name)] == ["codebook"]

    def test_held_out_quality(self, make):
        task = make(classes=(0,) * 40)  # more than one block
        measured = task.evaluate(task.model)
        images = to_float(torch.from_numpy(np.stack([task.held_out.image(i) for i in range(40)])).permute(0, 3, 1, 2))
        output = task.model(images)
        errors = (output.images.detach().clamp(-1, 1) - images).square().mean(dim=(1, 2, 3)).double().numpy()
        counts = np.bincount(output.codes.flatten().numpy(), minlength=24)
        share = counts[counts > 0] / counts.sum()
        expected = {
            "l2": errors.mean(),
            "psnr": np.mean(10 * np.log10(2**2 / errors)),
            "codes_used": (counts > 0).mean(),
            "perplexity": np.exp(-(share * np.log(share)).sum()),
        }
        assert measured == pytest.approx(expected, rel=1e-5)
        assert 1 < measured["perplexity"] < 24 * measured["codes_used"]

    def test_the_sheet_shows_every_class_first(self, make, monkeypatch):
        task = make(classes=(4, 4, 4, 1, 1, 0))
        calls = rendered_sheets(monkeypatch, tokenizer_module)
        task.sheet(task.model)
        [([originals, drawn], names)] = calls
        assert names["row_names"] == ["original", "reconstruction"]
        assert names["column_names"] == ["planets", "sprouts", "cats", "cats", "cats", "sprouts"]
        assert np.array_equal(pixels(originals), np.stack([task.held_out.image(i) for i in (5, 3, 0, 1, 2, 4)]))
        assert np.abs(pixels(drawn).astype(int) - pixels(originals)).max() > 0

    def test_a_sheet_has_ten_columns_at_most(self, make, monkeypatch):
        task = make(classes=(0,) * 15)
        calls = rendered_sheets(monkeypatch, tokenizer_module)
        task.sheet(task.model)
        assert [len(row) for row in calls[0][0]] == [10, 10]

    def test_saving(self, make, tmp_path):
        task = make()
        task.save(task.model, tmp_path / "model")
        assert torch.equal(VQModel.from_pretrained(tmp_path).codebook, task.model.codebook)

    @pytest.mark.parametrize("name", ["l1_weight", "l2_weight", "codebook_weight"])
    def test_settings_out_of_range(self, name):
        with pytest.raises(ConfigError, match=f"task.{name} must not be negative, got -1"):
            TokenizerTaskConfig(**{name: -1.0})


class TestGenerator:
    @pytest.fixture
    def codes(self):
        generator = np.random.default_rng(0)

        def codes(count, views=1):
            return CodeSet(
                generator.integers(0, 24, (count, views, 9)).astype(np.uint16), generator.integers(0, 5, count)
            )

        return codes

    @pytest.fixture
    def make(self, make_aim, make_vq, codes):
        def make(held_out=6, views=1, **config):
            settings = GeneratorTaskConfig(tokenizer="vq", **config)
            return GeneratorTask(make_aim(), make_vq(), codes(12, views), codes(held_out), NAMES, settings, seed=3)

        return make

    @pytest.fixture
    def batch(self):
        codes = torch.randint(24, (40, 9), generator=rng())
        return CodeBatch(codes, torch.randint(5, (40,), generator=rng(1)))

    def expected(self, model, codes, labels):
        """Mean cross entropy, code by code."""
        log_probabilities = model(codes[:, :-1], labels).log_softmax(dim=-1)
        return -log_probabilities.gather(-1, codes[..., None]).mean()

    def test_the_loss_without_dropout(self, make, batch):
        task = make(label_dropout=0.0)
        loss, report = task.loss(task.model, batch, rng(), 0)
        assert torch.allclose(loss, self.expected(task.model, batch.codes, batch.labels))
        assert report == {}

    def test_dropped_labels_leave_no_trace_of_the_class(self, make, batch):
        task = make(label_dropout=1.0)
        loss, _ = task.loss(task.model, batch, rng(), 0)
        assert torch.allclose(loss, self.expected(task.model, batch.codes, torch.full((40,), 5)))
        loss.backward()
        assert not task.model.condition.table.weight.grad[:5].any(), "neither token nor condition"
        assert task.model.condition.table.weight.grad[5].any()

    def test_one_draw_for_token_and_condition_from_the_given_randomness(self, make, batch):
        task = make(label_dropout=0.4)
        state = torch.random.get_rng_state()
        dropped = torch.rand(40, generator=rng(8)) < 0.4
        assert 5 < dropped.sum() < 30
        loss, _ = task.loss(task.model, batch, rng(8), 0)
        assert torch.allclose(loss, self.expected(task.model, batch.codes, batch.labels.masked_fill(dropped, 5)))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert loss != task.loss(task.model, batch, rng(9), 0)[0]

    def test_how_many_labels_are_dropped(self, make, batch, monkeypatch):
        task, seen = make(label_dropout=0.1), []
        monkeypatch.setattr(
            generator_module,
            "code_cross_entropy",
            lambda model, codes, labels, mask, **options: seen.append(labels) or codes.sum(),
        )
        for seed in range(100):
            task.loss(task.model, batch, rng(seed), 0)
        labels = torch.cat(seen)
        kept = labels != 5
        assert 300 < (~kept).sum() < 500
        assert torch.equal(labels[kept], batch.labels.repeat(100)[kept])

    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_checkpointing_and_slices_change_neither_loss_nor_gradients(self, make, batch, precision, monkeypatch):
        results = []
        for checkpointing, logits_at_once in ((False, 2**22), (True, 2**22), (False, 20)):
            monkeypatch.setattr(generator_module, "_LOGITS_AT_ONCE", logits_at_once)
            task = make(checkpointing=checkpointing)
            passed = []
            task.model.blocks[0].register_forward_pre_hook(lambda *_, passed=passed: passed.append(1))
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                loss, _ = task.loss(task.model.train(), batch, rng(), 0)
            loss.backward()
            assert len(passed) == 1 + checkpointing
            results.append([loss.detach(), *(parameter.grad for parameter in task.model.parameters())])
        near = 1e-6 if precision == torch.float32 else 0.02
        for other in results[1:]:
            for ours, theirs in zip(other, results[0], strict=True):
                assert (ours - theirs).abs().max() <= near * max(1.0, float(theirs.abs().max()))

    def test_every_part_learns(self, make, batch):
        task = make(label_dropout=0.5)
        task.loss(task.model.train(), batch, rng(), 0)[0].backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() for parameter in task.model.parameters())

    @pytest.mark.parametrize("held_out", [3, 70])  # below and above the size of a block
    def test_held_out_loss(self, make, held_out):
        task = make(held_out=held_out)
        measured = task.evaluate(task.model)
        codes = torch.from_numpy(task.held_out.shards[0][:, 0].astype(np.int64))
        loss = self.expected(task.model, codes, torch.from_numpy(task.held_out.labels)).item()
        assert measured == pytest.approx({"loss": loss, "bits_per_token": loss / math.log(2)}, rel=1e-5)

    def test_batches_go_on_where_they_stopped(self, make):
        task = make(views=2)
        batches = task.batches(0, 4)
        whole = [next(batches) for _ in range(5)]
        batches = task.batches(12, 4)
        for expected in whole[3:]:
            batch = next(batches)
            assert torch.equal(batch.codes, expected.codes)
            assert torch.equal(batch.labels, expected.labels)

    def test_nothing_beside_the_model_is_trained(self, make, batch):
        task = make()
        assert task.companions() == {}
        task.loss(task.model, batch, rng(), 0)[0].backward()
        assert all(parameter.grad is None for parameter in task.tokenizer.parameters())

    def test_the_sheet_is_a_guided_sample_of_each_class(self, make, monkeypatch):
        from aimamba.generation import SamplingConfig

        task = make(sheet_pictures=2, sheet_cfg_scale=3.0, sheet_top_k=4)
        calls = rendered_sheets(monkeypatch, generator_module)
        task.sheet(task.model)
        [(rows, names)] = calls
        assert tuple(names["row_names"]) == NAMES
        assert [len(row) for row in rows] == [2] * 5
        images = Pipeline(task.tokenizer, task.model, NAMES)(NAMES, 2, SamplingConfig(cfg_scale=3.0, top_k=4))
        assert np.array_equal(pixels([image for row in rows for image in row]), pixels(images))

    def test_saving(self, make, tmp_path):
        task = make()
        task.save(task.model, tmp_path / "model")
        loaded = Pipeline.from_pretrained(tmp_path)
        assert loaded.class_names == NAMES
        assert torch.equal(loaded.tokenizer.codebook, task.tokenizer.codebook)
        assert torch.equal(loaded.generator.word_embedding.weight, task.model.word_embedding.weight)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("label_dropout", -0.1),
            ("label_dropout", 1.1),
            ("sheet_pictures", 0),
            ("sheet_cfg_scale", -1.0),
            ("sheet_top_k", -1),
        ],
    )
    def test_settings_out_of_range(self, name, value):
        with pytest.raises(ConfigError, match=f"task.{name} must .*, got {value}"):
            GeneratorTaskConfig(tokenizer="vq", **{name: value})


class TestTokenDropout:
    """``task.token_dropout``."""

    def test_zero_asks_for_no_mask_and_no_random_number(self, make_aim, make_vq):
        assert mask(make_aim(), make_vq(), 0.0) is None

    def test_features_are_dropped_at_the_rate_and_the_rest_scaled_up(self, make_aim, make_vq):
        drawn = mask(make_aim(), make_vq(), 0.25, rows=400)
        assert drawn.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert float((drawn == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
        assert float(drawn.mean()) == pytest.approx(1.0, abs=0.02)

    def test_it_touches_words_and_not_places(self, make_aim):
        model = make_aim()
        codes, labels = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        silent = model(codes, labels, token_mask=torch.zeros(1, 3, model.config.width))
        with torch.no_grad():
            model.word_embedding.weight[0] = 0  # the head is tied: compare the other codes
        assert torch.allclose(model(codes, labels)[..., 1:], silent[..., 1:], atol=1e-6)


def mask(model, tokenizer, rate, rows=2):
    empty = CodeSet(np.zeros((1, 1, 9), np.uint16), np.zeros(1, np.int64))
    config = GeneratorTaskConfig(tokenizer="", token_dropout=rate)
    task = GeneratorTask(model, tokenizer, empty, empty, (), config)
    return task._token_mask(model, torch.zeros(rows, 9, dtype=torch.long), torch.Generator().manual_seed(0))
