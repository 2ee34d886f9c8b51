"""The tokenizer's task: its losses, metrics and sample sheets."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aimamba.data.loader import Batch
from aimamba.data.sheets import to_float
from aimamba.errors import ConfigError
from aimamba.models import VQConfig, VQModel
from aimamba.train import tokenizer as tokenizer_module
from aimamba.train.checkpoint import check_same_basis
from aimamba.train.tokenizer import TokenizerTask, TokenizerTaskConfig, detail_weights, image_gradients
from lpips_files import install, pickled, small_arrays
from refusals import one_line_error

NAMES = ("planets", "sprouts", "robots", "shells", "cats")


class Noise(NamedTuple):
    """Images of noise with the given labels."""

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


@pytest.fixture
def make(make_vq):
    def make(classes=(0, 1, 2, 3), **config):
        return TokenizerTask(make_vq(), Noise((0,) * 12), Noise(classes), TokenizerTaskConfig(**config), seed=3)

    return make


@pytest.fixture
def batch(rng):
    return Batch(torch.randint(256, (5, 3, 8, 8), generator=rng(), dtype=torch.uint8), torch.zeros(5).long())


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"l1_weight": 1.0, "l2_weight": 0.0, "codebook_weight": 0.0},
        {"l1_weight": 0.3, "l2_weight": 2.0, "codebook_weight": 0.7},
    ],
)
def test_the_loss_is_the_formula(make, batch, weights, rng):
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


def test_errors_count_more_where_images_have_detail():
    images = torch.zeros(1, 3, 12, 12)
    images[0, 1, 6, 6] = 1.0
    assert detail_weights(images, 0.0) == 1
    weights = detail_weights(images, 8.0)
    assert weights.shape == (1, 1, 12, 12), "the same in every channel"
    assert torch.allclose(weights[0, 0, 6, 6], torch.tensor(1 + 8 * 80 / 81))
    assert torch.allclose(weights[0, 0, 6, 4], torch.tensor(1 + 8 / 81)), "the part is in its square"
    assert weights[0, 0, 0, 0] == 1, "nothing but ground around it, and nothing outside the image"


def test_the_loss_and_the_objective_have_the_weights_of_details(make, batch, rng):
    task, plain = make(l1_weight=0.3, l2_weight=2.0, detail_weight=5.0), make(l1_weight=0.3, l2_weight=2.0)
    images = batch.images / 127.5 - 1
    drawn = task.model.eval()(images).images
    difference, weights = drawn - images, detail_weights(images, 5.0)
    l1, l2 = (weights * difference.abs()).mean(), (weights * difference.square()).mean()
    (total, _), (without, report) = (one.loss(one.model.eval(), batch, rng(), 0) for one in (task, plain))
    assert torch.allclose(total - without, 0.3 * (l1 - report["l1"]) + 2.0 * (l2 - report["l2"]), atol=1e-6)
    measured, usual = task.evaluate(task.model), plain.evaluate(plain.model)
    assert measured["reconstruction"] > usual["reconstruction"]
    assert (measured["psnr"], measured["l2"]) == (usual["psnr"], usual["l2"])


def test_gradients_of_an_image():
    image = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert image_gradients(image) == (1 + 0) / 2 + (3 + 2) / 2
    assert image_gradients(image[..., :1]) == 3, "a single column has only neighbours below"
    assert image_gradients(image[..., :1, :1]) == 0
    assert image_gradients(torch.full((2, 3, 8, 8), 0.7)) == 0


def test_ripples_count_more_with_the_weight_of_image_gradients(make, batch, rng):
    task, plain = make(l1_weight=0.3, image_gradient_weight=2.0), make(l1_weight=0.3)
    images = batch.images / 127.5 - 1
    gradients = image_gradients(task.model.eval()(images).images - images)
    (total, report), (without, usual) = (one.loss(one.model.eval(), batch, rng(), 0) for one in (task, plain))
    assert torch.allclose(total - without, 2.0 * gradients, atol=1e-6)
    assert report["image_gradient"] == gradients
    assert "image_gradient" not in usual
    drawn = torch.stack([torch.from_numpy(task.held_out.image(i, None)) for i in range(len(task.held_out))])
    held_out = drawn.movedim(-1, 1) / 127.5 - 1
    apart = image_gradients(task.model(held_out).images.clamp(-1, 1).detach() - held_out)
    measured, before = (one.evaluate(one.model)["reconstruction"] for one in (task, plain))
    assert measured == pytest.approx(before + 2.0 * float(apart), rel=1e-4)
    assert make(l2_weight=0.0, image_gradient_weight=1.0).objective() is not None


def test_every_part_learns(make, batch, rng):
    task = make(l1_weight=1.0)
    task.loss(task.model.train(), batch, rng(), 0)[0].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() for parameter in task.model.parameters())


@pytest.mark.parametrize(("halvings", "codebook_size"), [(2, 256), (3, 4096), (4, 16384)])
def test_down_samplings_and_codebooks(make_vq, halvings, codebook_size, rng):
    model = make_vq(channel_mult=(1,) * (halvings + 1), codebook_size=codebook_size)
    images = Noise((0, 1, 2, 3), size=32)
    task = TokenizerTask(model, images, images, TokenizerTaskConfig(l1_weight=1.0))
    task.loss(model.train(), next(task.batches(0, 4)), rng(), 0)[0].backward()
    assert model.codebook.grad.any()
    latents = 4 * (32 >> halvings) ** 2
    assert (task.use.use > 0).sum() == min(codebook_size, latents), (
        "one code for each latent, up to the size of the codebook"
    )
    measured = task.evaluate(model.eval())
    assert math.isfinite(measured["psnr"])
    assert 1 <= measured["perplexity"] <= latents


def test_decoder_only_trains_nothing_else(make, batch, rng):
    task = make(decoder_only=True)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    task.loss(task.model.train(), batch, rng(), 0)[0].backward()
    learning = {name for name, parameter in task.model.named_parameters() if parameter.grad is not None}
    decoding = {name for name in before if name.startswith(("from_code.", "decoder."))}
    assert learning == decoding
    assert all(torch.equal(task.model.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_perceptual_loss_starts_at_perceptual_start(make, batch, monkeypatch, rng):
    monkeypatch.setattr(tokenizer_module, "perceptual_loss", lambda *_, **__: torch.nn.L1Loss())
    task, plain = make(perceptual_weight=0.5, perceptual_start=3), make()
    for step in (2, 3):
        (total, report), (without, _) = (one.loss(one.model.eval(), batch, rng(), step) for one in (task, plain))
        assert ("perceptual" in report) == (step == 3)
        assert torch.allclose(total, without + 0.5 * report.get("perceptual", torch.zeros(())))


def test_codes_are_revived_in_training_only(make, batch, rng):
    task = make()
    before = task.model.codebook.detach().clone()
    task.loss(task.model.eval(), batch, rng(), 0)
    assert torch.equal(task.model.codebook, before)
    assert not task.use.use.any()
    task.loss(task.model.train(), batch, rng(), 0)
    assert (task.model.codebook != before).any(dim=-1).all(), "the codebook starts from the data"
    assert task.use.use.all()
    assert task.companions() == {"codebook_use": task.use}


def test_the_codebook_of_a_trained_tokenizer_is_not_filled_from_the_data(make_vq, batch, rng):
    def codebooks(**config):
        model = make_vq()
        before = model.codebook.detach().clone()
        task = TokenizerTask(model, Noise((0,) * 12), Noise((0,)), TokenizerTaskConfig(**config), trained=True)
        task.loss(model.train(), batch, rng(), 0)
        yield before, model.codebook.detach().clone()
        task.use.use[3] = 0.01
        task.loss(model.train(), batch, rng(), 1)
        yield before, model.codebook.detach()

    (before, first), (_, later) = codebooks()
    assert torch.equal(first, before)
    assert (later != before).any(dim=-1).nonzero().flatten().tolist() == [3], "it has not been used for long"
    assert all(torch.equal(*pair) for pair in codebooks(revive_codes=False))


def test_all_randomness_comes_from_the_given_generator(make, batch, rng):
    codebooks = []
    for seed in (0, 0, 1):
        task = make()
        state = torch.random.get_rng_state()
        task.loss(task.model.train(), batch, rng(seed), 0)
        assert torch.equal(torch.random.get_rng_state(), state)
        codebooks.append(task.model.codebook)
    assert torch.equal(codebooks[0], codebooks[1])
    assert not torch.equal(codebooks[0], codebooks[2])


def test_an_image_with_nan_does_no_lasting_harm(make, batch, monkeypatch, rng):
    task = make()
    latents = task.model.latents
    monkeypatch.setattr(task.model, "latents", lambda images: latents(images) * math.nan)
    total, _ = task.loss(task.model.train(), batch, rng(), 0)
    assert total.isnan(), "fit skips such a step"
    assert task.model.codebook.isfinite().all()
    assert task.use.use.isfinite().all()


def test_batches_continue_from_any_position(make):
    task = make()
    batches = task.batches(0, 4)
    whole = [next(batches) for _ in range(5)]
    batches = task.batches(12, 4)
    for expected in whole[3:]:
        batch = next(batches)
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)


def test_the_reconstruction_error_has_the_weights_of_the_losses(make):
    task = make(l1_weight=0.3, l2_weight=2.0, perceptual_weight=0.5, perceptual_side=8)
    measured = task.evaluate(task.model.eval())
    images = to_float(torch.from_numpy(np.stack([task.held_out.image(i) for i in range(4)])).permute(0, 3, 1, 2))
    error = task.model(images).images.detach().clamp(-1, 1) - images
    expected = 0.3 * error.abs().mean() + 2.0 * measured["l2"] + 0.5 * measured["perceptual"]
    assert measured["reconstruction"] == pytest.approx(float(expected), rel=1e-5)


def test_what_decides_which_model_is_the_best(make):
    assert make().objective() == ("reconstruction", math.inf)
    assert make(adversarial_weight=0.5, discriminator_layers=1, discriminator_channels=4).objective() is None
    assert make(l2_weight=0.0).objective() is None


def test_the_basis_names_classes_and_images():
    def basis(images):
        config = VQConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=8, norm_groups=4)
        return TokenizerTask(VQModel(config), images, images, TokenizerTaskConfig()).basis()

    first = basis(Noise((0, 0, 1)))
    assert first["set of classes"] == "planets, sprouts, robots, shells, cats"
    assert first["set of images"].startswith("3 images, ")
    assert basis(Noise((0, 0, 1))) == first
    fewer = basis(Noise((0, 0, 1), class_names=("planets", "sprouts")))
    assert fewer["set of classes"] == "planets, sprouts"
    assert basis(Noise((0, 1, 1)))["set of images"] != first["set of images"]
    assert len(basis(Noise((0,), class_names=tuple(map(str, range(1000)))))["set of classes"]) < 120


def test_a_run_on_lpips_knows_its_weights(make, tmp_path, monkeypatch):
    path = install(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path))
    assert "perceptual network" not in make(perceptual_weight=1.0).basis()
    first = make(perceptual_weight=1.0, perceptual="lpips").basis()
    assert make(perceptual_weight=1.0, perceptual=str(path)).basis() == first
    path.write_bytes(pickled(small_arrays(seed=1)))
    other = make(perceptual_weight=1.0, perceptual=str(path)).basis()
    with one_line_error(ConfigError, match="run holds a run on another perceptual network"):
        check_same_basis(first, other, Path("run"))


def test_weight_decay_skips_the_codebook_only(make):
    task = make()
    assert [name for name, _ in task.model.named_parameters() if task.no_weight_decay(name)] == ["codebook"]


def test_held_out_metrics(make):
    task = make(classes=(0,) * 40)  # more than one block
    measured = task.evaluate(task.model)
    images = to_float(torch.from_numpy(np.stack([task.held_out.image(i) for i in range(40)])).permute(0, 3, 1, 2))
    output = task.model(images)
    errors = (output.images.detach().clamp(-1, 1) - images).square().mean(dim=(1, 2, 3)).double().numpy()
    counts = np.bincount(output.codes.flatten().numpy(), minlength=24)
    share = counts[counts > 0] / counts.sum()
    expected = {
        "reconstruction": errors.mean(),  # l2 alone has a weight
        "l2": errors.mean(),
        "psnr": np.mean(10 * np.log10(2**2 / errors)),
        "codes_used": (counts > 0).mean(),
        "perplexity": np.exp(-(share * np.log(share)).sum()),
    }
    assert measured == pytest.approx(expected, rel=1e-5)
    assert 1 < measured["perplexity"] < 24 * measured["codes_used"]


def test_the_sheet_shows_every_class_first(make, stacked, rendered_sheets):
    task = make(classes=(4, 4, 4, 1, 1, 0))
    calls = rendered_sheets(tokenizer_module)
    task.sheet(task.model)
    [([originals, reconstructions], names)] = calls
    assert names["row_names"] == ["original", "reconstruction"]
    assert names["column_names"] == ["planets", "sprouts", "cats", "cats", "cats", "sprouts"]
    expected = np.stack([task.held_out.image(i) for i in (5, 3, 0, 1, 2, 4)])
    assert np.array_equal(stacked(originals), expected)
    output = task.model(to_float(torch.from_numpy(expected).permute(0, 3, 1, 2))).images.detach()
    levels = ((output.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(stacked(reconstructions) - levels).max() <= 0.51, "rounded to 8 bits"


def test_a_sheet_has_ten_columns_at_most(make, rendered_sheets):
    task = make(classes=(0,) * 15)
    calls = rendered_sheets(tokenizer_module)
    task.sheet(task.model)
    assert [len(row) for row in calls[0][0]] == [10, 10]


def test_saving(make, tmp_path):
    task = make()
    task.save(task.model, tmp_path / "model")
    assert torch.equal(VQModel.from_pretrained(tmp_path).codebook, task.model.codebook)


@pytest.mark.parametrize(
    "name", ["l1_weight", "l2_weight", "detail_weight", "image_gradient_weight", "codebook_weight"]
)
def test_settings_out_of_range(name):
    with pytest.raises(ConfigError, match=f"task.{name} must not be negative, got -1"):
        TokenizerTaskConfig(**{name: -1.0})


@pytest.mark.parametrize("start", [-1, 501])
def test_a_discriminator_that_starts_after_its_loss(start):
    with one_line_error(
        ConfigError, match=f"discriminator_start must be 0 to task.adversarial_start = 500, got {start}"
    ):
        TokenizerTaskConfig(adversarial_start=500, discriminator_start=start)
