"""Causal regularisation: a network that predicts each code's vector from those before it trains a tokenizer too."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from aimamba.checkpoints.weights import read_tensors
from aimamba.data.loader import Batch
from aimamba.errors import ConfigError
from aimamba.models import VQModel
from aimamba.train.causal import NextVector
from aimamba.train.checkpoint import read_checkpoint
from aimamba.train.fit import fit
from aimamba.train.interruption import Interrupted
from aimamba.train.plan.on_paper import Place
from aimamba.train.plan.outline import outline
from aimamba.train.recipe import load_recipe
from aimamba.train.settings import FitConfig
from aimamba.train.tokenizer import TokenizerTask
from aimamba.train.tokenizer_settings import TokenizerTaskConfig
from quantizer_settings import KINDS, SETTINGS
from refusals import one_line_error

FIT = {"steps": 6, "batch_size": 4, "checkpoint_every": 3, "evaluate_every": 3, "lr": 1e-3, "log_every": 1}


class Noise:
    """Images of 16 pixels."""

    size, class_names, labels = 16, ("noise",), np.zeros(24, dtype=np.int64)

    def __len__(self):
        return len(self.labels)

    def image(self, index, rng=None):
        return np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.fixture
def make(make_vq):
    def make(task=TokenizerTask, kind="learned", **config):
        model = make_vq(**SETTINGS[kind], attention=False)
        return task(model, Noise(), Noise(), TokenizerTaskConfig(**config), seed=3)

    return make


@pytest.fixture
def batch():
    images = np.stack([Noise().image(index) for index in range(4)])
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.zeros(4).long())


@pytest.fixture
def network(rng):
    made = NextVector(5, 12)
    made.init_weights(rng())
    return made


def test_a_vector_is_predicted_from_those_before_it_alone(network, rng):
    rows = torch.randn(2, 12, 5, generator=rng())
    before = network.predict(rows)
    rows[:, 6] += 1
    changed = (network.predict(rows) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [False] * 7 + [True] * 5


def test_the_error_is_the_mean_over_numbers_and_has_two_gradients(network, rng):
    vectors = torch.randn(2, 5, 3, 4, generator=rng(), requires_grad=True)
    rows = vectors.detach().flatten(2).mT
    loss = network(vectors)
    assert_close(loss, (network.predict(rows) - rows).square().mean())
    loss.backward()
    of_targets = 2 * (rows - network.predict(rows).detach()) / rows.numel()
    gradient = vectors.grad.flatten(2).mT
    assert_close(gradient[:, -1], of_targets[:, -1], msg="the last is read by none")
    assert not torch.allclose(gradient[:, 0], of_targets[:, 0], atol=1e-6)
    assert all(bool(weight.grad.any()) for weight in network.parameters())


def test_one_code_is_predicted_from_nothing(rng):
    network = NextVector(5, 1)
    network.init_weights(rng())
    rows = torch.randn(3, 1, 5, generator=rng())
    assert_close(network.predict(rows)[0], network.predict(-rows)[2])


def test_its_places_and_mixers_learn_a_sequence(network, rng):
    """Vectors that turn by a fixed matrix can be told from the one before."""
    turn = torch.linalg.qr(torch.randn(5, 5, generator=rng()))[0]
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(60):
        row = [torch.nn.functional.normalize(torch.randn(16, 5, generator=rng(step)), dim=-1)]
        for _ in range(11):
            row.append(row[-1] @ turn)
        loss = network(torch.stack(row, dim=-1).view(16, 5, 3, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.08, "0.2 without looking"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_part_of_the_training_loss_and_of_nothing_else(make, batch, rng, kind):
    still = {"kind": kind, "revive_codes": False}
    plain, task = make(**still), make(**still, causal_weight=3.0)
    model = plain.model.train()
    without, before = plain.loss(model, batch, rng(), 0)
    total, report = task.loss(model, batch, rng(), 0)
    assert report.keys() - before.keys() == {"causal"}
    assert_close(total, without + 3 * report["causal"])
    [of_encoder] = torch.autograd.grad(total - without, model.encoder.head.weight, retain_graph=True)
    assert bool(of_encoder.any())
    total.backward()
    assert all(bool(weight.grad.any()) for weight in task.next_vector.parameters())
    model.eval()
    assert "causal" not in task.loss(model, batch, rng(), 0)[1]
    assert task.evaluate(model) == plain.evaluate(model)
    assert make().auxiliary() is None


def test_a_stopped_run_continues_exactly_and_saves_no_network(make, tmp_path, metrics):
    class Stopping(TokenizerTask):
        def loss(self, model, batch, rng, step=0):
            if step == 5:
                raise Interrupted("stopped", 2)
            return super().loss(model, batch, rng, step)

    settings = {"causal_weight": 1.0}
    fit(make(**settings), FitConfig(**FIT), tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        fit(make(Stopping, **settings), FitConfig(**FIT), tmp_path / "halves", quiet=True)
    fit(make(**settings), FitConfig(**FIT), tmp_path / "halves", quiet=True)
    whole, halves = (read_checkpoint(tmp_path / name / "checkpoint.pt").parts for name in ("whole", "halves"))
    assert {"next_vector", "next_vector optimizer"} <= whole.keys()
    assert_close(halves, whole, rtol=0, atol=0)
    assert not torch.equal(whole["next_vector"]["enter.weight"], make(**settings).next_vector.enter.weight)
    [saved] = (tmp_path / "whole").glob("model/*.safetensors")
    assert read_tensors(saved).keys() == make().model.state_dict().keys()
    VQModel.from_pretrained(tmp_path / "whole")
    assert {"causal", "next_vector_gradient_norm"} <= metrics(tmp_path / "whole", "train")[0].keys()
    assert "causal" not in metrics(tmp_path / "whole", "held-out")[0]


def test_codes_become_easier_to_predict(make, tmp_path):
    """The same network, trained on the codes of either tokenizer, without changing them."""
    errors = []
    for weight in (0.0, 20.0):
        task = make(causal_weight=weight)
        fit(task, FitConfig(**{**FIT, "steps": 40, "lr": 5e-3}), tmp_path / str(weight), quiet=True)
        images = torch.stack([torch.from_numpy(Noise().image(index)) for index in range(24)]).permute(0, 3, 1, 2)
        with torch.no_grad():
            vectors = task.model(images / 127.5 - 1).vectors
        network = NextVector(task.model.config.codebook_dim, 64)
        network.init_weights(torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(40):
            loss = network(vectors)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors.append(loss.item())
    assert errors[1] < 0.7 * errors[0], errors


def test_a_plan_counts_it():
    recipe = load_recipe("avatars-tiny-vq", {"task.causal_weight": 1.0})
    plain, with_it = outline(load_recipe("avatars-tiny-vq")), outline(recipe)
    numbers = sum(weight.numel() for weight in NextVector(8, 1).parameters()) + (plain.tokens - 1) * 128
    assert with_it.trained - plain.trained == numbers
    assert with_it.averaged == plain.averaged
    assert with_it.trace(8, Place(), False).activations > plain.trace(8, Place(), False).activations


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"causal_weight": -1.0}, "task.causal_weight must not be negative, got -1"),
        ({"causal_weight": float("inf")}, "task.causal_weight must be finite"),
        (
            {"causal_weight": 1.0, "adversarial_weight": 0.5},
            "task.causal_weight does not go with task.adversarial_weig",
        ),
        ({"causal_weight": 1.0, "decoder_only": True}, "task.causal_weight changes the codes, which task.decoder_only"),
    ],
)
def test_refusals(settings, message):
    with one_line_error(ConfigError, message):
        TokenizerTaskConfig(**settings)
