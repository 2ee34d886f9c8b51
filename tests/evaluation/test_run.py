"""An evaluation as a request: contradictions, defaults, and what the protocol fixes."""

import numpy as np
import pytest

from aimamba.errors import ConfigError
from aimamba.evaluation import run
from aimamba.evaluation.run import EvaluationRequest, evaluate
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline


def request(**values):
    return EvaluationRequest(reference="avatars-8:held-out", **values)


def test_defaults_without_and_with_the_protocol():
    plain = request(model="m")
    assert (plain.sample_count, plain.labelling, plain.network) == (5000, "balanced", "lite0")
    paper = request(model="m", protocol="aim-paper")
    assert (paper.sample_count, paper.labelling, paper.network) == (50_000, "random", "inception")
    assert request(model="m", protocol="aim-paper", features="weights.pth").network == "weights.pth"
    assert request(model="m", protocol="aim-paper", count=50_000, labels="random").sample_count == 50_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either SAMPLES or --model"),
        ({"samples": "a", "model": "b"}, "give either SAMPLES or --model"),
        ({"samples": "a", "sweep": ()}, "so they need --model"),
        ({"samples": "a", "protocol": "aim-paper"}, "so they need --model"),
        ({"samples": "a", "count": 4}, "so they need --model"),
        ({"samples": "a", "labels": "random"}, "so they need --model"),
        ({"model": "m", "protocol": "paper"}, "--protocol must be aim-paper, got 'paper'"),
        ({"model": "m", "protocol": "aim-paper", "count": 50_001}, "takes 50000 samples, fewer for a rehearsal"),
        ({"model": "m", "protocol": "aim-paper", "labels": "balanced"}, "fixes labels random, got balanced"),
        ({"model": "m", "count": 0}, "-n must be from 1 to 10,000,000, got 0"),
        ({"model": "m", "count": 10**11}, "-n must be from 1 to 10,000,000, got 100000000000"),
        ({"model": "m", "batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"model": "m", "sweep": (1.0, -1.0)}, "--sweep expects guidance scales from 0 to 1,000,000, got -1"),
        ({"model": "m", "sweep": (float("nan"),)}, "guidance scales from 0 to 1,000,000, got nan"),
        ({"model": "m", "sweep": (1.0, 1e39)}, "guidance scales from 0 to 1,000,000, got 1e\\+39"),
        ({"model": "m", "sweep": (float("inf"),)}, "guidance scales from 0 to 1,000,000, got inf"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        request(**values)


def test_the_training_set_of_a_named_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert request(model="m").training_set == "avatars-8:train"
    assert request(model="m", train="none").training_set is None
    assert request(model="m", train="photos").training_set == "photos"
    (tmp_path / "photos").mkdir()
    for name in ("avatars-8:held-out:5", "avatars-8:train", "photos", "photos:held-out"):
        assert EvaluationRequest(reference=name, model="m").training_set is None
    (tmp_path / "avatars-8").mkdir()
    assert request(model="m").training_set is None, "a folder of that name"


def test_a_model_must_be_loaded():
    with pytest.raises(ConfigError, match="m is not loaded; pass the loaded Pipeline"):
        evaluate(request(model="m"))


def test_a_sweep_measures_every_scale_once(make_aim, make_vq, plain, tmp_path, pixels, monkeypatch):
    np.savez(tmp_path / "real.npz", arr_0=pixels(9))
    monkeypatch.setattr(run, "open_extractor", lambda name, **_: plain(name))
    pipeline = Pipeline(make_vq(), make_aim(num_tokens=16), ())
    found = evaluate(
        EvaluationRequest(
            reference=str(tmp_path / "real.npz"),
            model="m",
            count=6,
            sampling=SamplingConfig(cfg_scale=2.0, seed=3),
            sweep=(3.0, 1.0, 3.0, 2.0),
        ),
        pipeline=pipeline,
    )
    metrics = found.comparison.metrics
    assert [entry.cfg_scale for entry in metrics.guidance] == [1.0, 2.0, 3.0]
    assert metrics.guidance[1].metrics.frechet == metrics.frechet
    assert found.settings["samples"]["sampling"]["cfg_scale"] == 2.0
    assert found.to_dict().keys() == {"lite0", "settings"}
