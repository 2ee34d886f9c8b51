"""The JSON objects of metrics: keys and their order are a file format."""

import json
from dataclasses import FrozenInstanceError

import pytest

from aimamba.evaluation.metrics import GuidanceMetrics, Metrics, Recognition, ReconstructionMetrics, TrainingNeighbours
from aimamba.evaluation.neighbours import Copying, KnnAccuracy

METRICS = Metrics(
    frechet=1.5,
    inception_score=2.5,
    kid=0.25,
    kid_std=0.125,
    kid_subset_size=7,
    precision=0.5,
    recall=0.0,
    recognition=Recognition(
        samples=KnnAccuracy(0.75, 1.0, {"b": 0.5, "a": 1.0}), reference=KnnAccuracy(0.875, 0.9375, {"a": 1.0})
    ),
    neighbours=TrainingNeighbours(train="photos", copying=Copying(0.1, 0.2, 0.05)),
)


def test_keys_and_their_order():
    whole = Metrics(**{**vars(METRICS), "guidance": (GuidanceMetrics(cfg_scale=2.0, metrics=METRICS),)})
    single = '"frechet": 1.5, "inception_score": 2.5, "kid": 0.25, "kid_std": 0.125, '
    shares = '"precision": 0.5, "recall": 0.0, '
    assert json.dumps(whole.to_dict()) == (
        f'{{{single}"kid_subset_size": 7, {shares}'
        '"recognition": {"share": 0.75, "majority": 1.0, "per_class": {"b": 0.5, "a": 1.0}, '
        '"reference": {"share": 0.875, "majority": 0.9375}}, '
        '"neighbours": {"train": "photos", "similarity": 0.1, "similarity_held_out": 0.2, "closer": 0.05, '
        '"compared": "originals"}, '
        f'"guidance": [{{"cfg_scale": 2.0, {single}{shares}"recognised": 0.75}}]}}'
    )
    inception = Metrics(fid=1.0, sfid=2.0, inception_score=3.0, kid=4.0)
    assert list(inception.to_dict()) == ["fid", "sfid", "inception_score", "kid"]
    assert list(Metrics(rfid=1.0, rsfid=2.0).to_dict()) == ["rfid", "rsfid"]


def test_what_was_not_measured_is_left_out():
    assert Metrics().to_dict() == {}
    assert GuidanceMetrics(cfg_scale=1.0, metrics=Metrics(recall=0.0)).to_dict() == {"cfg_scale": 1.0, "recall": 0.0}
    values = {"psnr": 1.0, "ssim": 2.0, "ssim_llamagen": 3.0, "codes_used": 4.0, "perplexity": 5.0}
    assert list(ReconstructionMetrics(**values).to_dict()) == list(values)
    assert list(ReconstructionMetrics(**values, lpips=0.0).to_dict()) == [*list(values)[:3], "lpips", *list(values)[3:]]


def test_metrics_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        METRICS.guidance = ()
