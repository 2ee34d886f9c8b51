"""Training with every quantiser: averages of the codebook, schedules, exact resume, and what a short run reaches."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from aimamba.data.loader import Batch
from aimamba.errors import ConfigError
from aimamba.models import VQModel
from aimamba.train.codebook import CodebookAverages
from aimamba.train.fit import fit
from aimamba.train.settings import FitConfig
from aimamba.train.tokenizer import TokenizerTask
from aimamba.train.tokenizer_settings import TokenizerTaskConfig
from quantizer_settings import KINDS, SETTINGS
from refusals import one_line_error

FIT = {"steps": 60, "batch_size": 8, "lr": 1e-2, "ema_decay": 0.9, "log_every": 20, "schedule": "constant"}


class Gradients:
    """Images of 8 pixels, each a gradient between two colours."""

    size, class_names, labels = 8, ("gradient",), np.zeros(32, dtype=np.int64)

    def __len__(self):
        return len(self.labels)

    def image(self, index, rng=None):
        rng = np.random.default_rng(index)
        first, second = rng.integers(0, 256, (2, 3))
        along = np.linspace(0, 1, 8)[:, None, None]
        image = np.broadcast_to(first + along * (second - first), (8, 8, 3))
        return (image if index % 2 else image.transpose(1, 0, 2)).astype(np.uint8)


@pytest.fixture
def make(make_vq):
    def make(kind, settings=None, **task):
        model = make_vq(**SETTINGS[kind], attention=False, **(settings or {}))
        images = Gradients()
        return TokenizerTask(model, images, images, TokenizerTaskConfig(**{"gumbel_until": 30, **task}), seed=3)

    return make


def batch(count=8, first=0):
    images = np.stack([Gradients().image(index) for index in range(first, first + count)])
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.zeros(count).long())


def reference(latents, codes, vectors, count, total, decay):
    """The update of VQ-VAE, a code at a time."""
    for code in range(len(count)):
        mine = latents[codes == code]
        count[code] = decay * count[code] + (1 - decay) * len(mine)
        total[code] = decay * total[code] + (1 - decay) * mine.sum(dim=0)
    n = count.sum()
    for code in range(len(count)):
        vectors[code] = total[code] / ((count[code] + 1e-5) / (n + len(count) * 1e-5) * n)


def test_averages_are_those_of_vq_vae():
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    averages = CodebookAverages(vectors, 0.9)
    expected, count, total = vectors.clone(), torch.ones(5).double(), vectors.clone()
    for _ in range(4):
        latents = torch.randn(20, 3, generator=rng, dtype=torch.float64)
        codes = torch.randint(4, (20,), generator=rng)  # the last one is never used
        averages.observe(codes[:7], latents[:7])  # in parts
        averages.observe(codes[7:], latents[7:])
        averages.end_step(vectors, torch.zeros(()))
        reference(latents, codes, expected, count, total, 0.9)
        assert_close(vectors, expected)
    before = vectors.clone()
    averages.observe(codes, latents * math.nan)
    averages.end_step(vectors, torch.ones(()))
    assert torch.equal(vectors, before), "a step that is skipped leaves no trace"
    averages.observe(codes, latents)
    averages.end_step(vectors, torch.zeros(()))
    reference(latents, codes, expected, count, total, 0.9)
    assert_close(vectors, expected)
    assert averages.state_dict().keys() == {"use", "count", "total"}


def test_a_code_that_is_moved_forgets_its_latents():
    vectors = torch.arange(12.0).view(4, 3)
    averages = CodebookAverages(vectors, 0.5, trained=True)
    averages.observe(torch.tensor([2]), torch.full((1, 3), 7.0))
    averages.use[2] = 0.0
    latents = torch.full((1, 3), 3.0)
    averages.revive(vectors, latents, torch.Generator().manual_seed(0))
    assert vectors[2].tolist() == [3.0] * 3, "as long as it is"
    averages.end_step(vectors, torch.zeros(()))
    assert_close(vectors, torch.tensor([[0.0, 1, 2], [3, 4, 5], [3, 3, 3], [9, 10, 11]]), rtol=1e-4, atol=1e-4)


def test_parts_of_a_batch_give_the_codebook_of_the_whole(make, tmp_path):
    found = []
    for parts in (1, 2):
        task = make("ema", revive_codes=False)
        fit(task, FitConfig(**{**FIT, "steps": 3, "accumulation": parts}), tmp_path / str(parts), quiet=True)
        found.append(task.model.codebook)
    assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_run(make, kind, tmp_path, metrics):
    """Its errors fall, and it uses more than a few codes; stopped after half of the steps, it goes on exactly."""
    whole = tmp_path / "whole"
    first = make(kind).evaluate(make(kind).model)
    straight = make(kind)
    result = fit(straight, FitConfig(**FIT), whole, quiet=True)
    assert result.metrics["l2"] < 0.75 * first["l2"]
    assert result.metrics["perplexity"] > 3
    halves = tmp_path / "halves"
    fit(make(kind), FitConfig(**{**FIT, "steps": 30}), halves, quiet=True)
    resumed = make(kind)
    fit(resumed, FitConfig(**FIT), halves, quiet=True)
    for one, other in ((resumed.model, straight.model), (resumed.use, straight.use)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    saved = VQModel.from_pretrained(whole / "model")
    assert saved.config == resumed.model.config
    line = metrics(whole, "train")[-1]
    known = {"lfq": {"code_entropy", "mean_entropy"}, "gumbel": {"kl", "temperature"}}.get(kind, set())
    every = {"code_entropy", "mean_entropy", "kl", "temperature"}
    assert line.keys() & every == known


def test_the_penalties_have_their_weights(make, rng):
    base = {"entropy_weight": 0.0, "kl_weight": 0.0}
    for kind, weights, term in (
        (
            "lfq",
            {"entropy_weight": 0.3, "mean_entropy_weight": 2.0},
            lambda report: 0.3 * (report["code_entropy"] - 2 * report["mean_entropy"]),
        ),
        ("gumbel", {"kl_weight": 0.7}, lambda report: 0.7 * report["kl"]),
    ):
        plain, weighted = make(kind, **base), make(kind, **{**base, **weights})
        without, _ = plain.loss(plain.model.train(), batch(), rng(), 0)
        total, report = weighted.loss(weighted.model.train(), batch(), rng(), 0)
        assert_close(total, without + term(report))


def test_schedules():
    config = TokenizerTaskConfig(gumbel_until=100, gumbel_temperature=2.0, gumbel_last_temperature=0.5, kl_until=10)
    assert [config.temperature(step) for step in (0, 50, 100, 10**9)] == pytest.approx([2.0, 1.25, 0.5, 0.5])
    assert [config.weights(step)["kl"] for step in (0, 5, 10)] == pytest.approx([0, 2.5e-4, 5e-4])
    assert TokenizerTaskConfig(gumbel_until=0).temperature(0) == 0.0625


def test_noise_comes_from_the_given_generator(make, rng):
    task = make("gumbel")
    one, same, other = (task.loss(task.model.train(), batch(), rng(seed), 0)[0].detach() for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(*(task.loss(task.model.eval(), batch(), rng(seed), 0)[0].detach() for seed in (0, 1)))


@pytest.mark.parametrize("kind", ["ema", "gumbel"])
def test_decoder_only_keeps_codes_and_vectors(make, kind, rng):
    task = make(kind, decoder_only=True)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    (loss, report), (again, _) = (task.loss(task.model.train(), batch(), rng(seed), 0) for seed in (0, 1))
    loss.backward()
    task.end_step(torch.zeros(()))
    assert torch.equal(loss.detach(), again.detach()), "no noise"
    assert "temperature" not in report
    assert all(torch.equal(task.model.state_dict()[name], tensor) for name, tensor in before.items())
    learning = {name.split(".")[0] for name, weight in task.model.named_parameters() if weight.grad is not None}
    assert learning == {"from_code", "decoder"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_decay": 1.0}, "codebook_decay must lie in"),
        ({"entropy_weight": -1.0}, "entropy_weight must not be negative"),
        ({"kl_weight": math.inf}, "kl_weight must be finite"),
        ({"detail_weight": math.nan}, "detail_weight must"),
        ({"entropy_temperature": 0.0}, "entropy_temperature must be positive"),
        ({"gumbel_temperature": 0.01}, "gumbel_last_temperature must be at most"),
        ({"gumbel_until": -1}, "gumbel_until must not be negative"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with one_line_error(ConfigError, match=message):
        TokenizerTaskConfig(**settings)
