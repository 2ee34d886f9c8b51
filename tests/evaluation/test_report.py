"""The report shows the right images and every metric."""

import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from PIL import Image

from aimamba.evaluation import report
from aimamba.evaluation.compare import compare
from aimamba.evaluation.metrics import GuidanceMetrics, Metrics
from aimamba.evaluation.report import write_report
from aimamba.evaluation.run import Evaluation
from aimamba.evaluation.sources import open_source


@pytest.fixture
def npz(tmp_path, pixels):
    def write(name, n, seed, **more):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels(n, seed), **more)
        return open_source(str(tmp_path / f"{name}.npz"))

    return write


@pytest.fixture
def sheets(monkeypatch):
    """What was put on sheets: rows of images and their names."""
    made = []

    def sheet(rows, *, row_names=None, column_names=None):
        made.append(([[np.asarray(image) for image in row] for row in rows], row_names))
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(report, "sheet", sheet)
    return made


def test_with_classes_and_training_images(npz, plain, sheets, tmp_path, pixels):
    labels = np.arange(30) % 3
    samples, reference, train = npz("s<1>", 30, 0, arr_1=labels), npz("r", 20, 1, arr_1=labels[:20]), npz("t", 12, 2)
    found = compare(samples, reference, plain(), train=train)
    guidance = tuple(
        GuidanceMetrics(cfg_scale=scale, metrics=Metrics(frechet=3.0 - scale, precision=0.5, recall=scale / 4))
        for scale in (1.0, 2.0)
    )
    found = replace(found, metrics=replace(found.metrics, guidance=guidance))
    sets = {"samples": samples, "reference": reference, "train": train}
    write_report(tmp_path / "new" / "page", Evaluation(comparison=found, settings={"a": 1}, **sets))
    page = (tmp_path / "new" / "page" / "index.html").read_text(encoding="utf-8")
    assert "s<1>" not in page
    assert "s&lt;1&gt;" in page
    content = json.loads(unescape(re.search(r"<pre>(.*)</pre>", page, re.DOTALL)[1]))
    assert content == {"plain": found.metrics.to_dict(), "settings": {"a": 1}}
    for name in re.findall(r'src="([^"]+)"', page):
        assert (tmp_path / "new" / "page" / name).is_file()
    assert page.count("<svg") == 1 + 1 + 3  # distribution, precision and recall, one for each guided number
    assert "FID" not in page

    classes, real, nearest, firsts = sheets
    assert classes[1] == real[1] == ["class-0", "class-1", "class-2"]
    assert [len(row) for row in classes[0]] == [8, 8, 8]
    assert np.array_equal(classes[0][1][2], pixels(30, 0)[7])  # the third of class 1
    assert np.array_equal(real[0][2][0], pixels(20, 1)[2])
    most = int(found.nearest.similarities[:, 0].argmax())
    assert np.array_equal(nearest[0][0][0], pixels(30, 0)[most])
    assert np.array_equal(nearest[0][0][1], pixels(12, 2)[int(found.nearest.indices[most, 0])])
    assert nearest[1][0] == f"class-{most % 3} {float(found.nearest.similarities[most, 0]):.3f}"
    assert np.array_equal(firsts[0][2][5], pixels(12, 2)[int(found.nearest.indices[2, 4])])


def test_without_classes_and_training_images(npz, plain, sheets, tmp_path):
    samples, reference = npz("s", 11, 0), npz("r", 9, 1)
    found = compare(samples, reference, plain())
    write_report(tmp_path / "page", Evaluation(comparison=found, settings={}, samples=samples, reference=reference))
    assert [[len(row) for row in rows] for rows, _ in sheets] == [[8, 3], [8, 1]]
    assert (tmp_path / "page" / "index.html").read_text(encoding="utf-8").count("<svg") == 1
