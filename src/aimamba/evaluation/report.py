"""An HTML page of an evaluation: metrics, sheets of images, nearest training images, plots, settings."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from aimamba.data.sheets import sheet
from aimamba.evaluation.compare import Comparison
from aimamba.evaluation.metrics import GuidanceMetrics, Metrics
from aimamba.evaluation.plots import Series, plot
from aimamba.evaluation.run import Evaluation
from aimamba.evaluation.sources import ModelSource, Source
from aimamba.evaluation.summary import METRIC_NAMES, UNANIMOUS, summary
from aimamba.files import write_atomically

_CLASSES, _COLUMNS = 10, 8  # of a sheet
_CURVE_POINTS = 200  # of a cumulative distribution
_SHARE = (0.0, 1.0)
_COMPARED = {
    "originals": "Samples were compared with originals: a tokenizer's blur moves even exact copies away from them, so "
    "few close samples do not prove that nothing was copied. Evaluating the model itself (--model) compares codes.",
    "reconstructions": "Samples were compared with training images as the model's tokenizer reconstructs them; the "
    "originals are shown.",
}
_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
td { padding: 2px 1.5em 2px 0; vertical-align: top } td:first-child { white-space: nowrap }
img { max-width: 100% } pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 13px }
p { color: #555; max-width: 50em }
"""


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """Write ``index.html`` and its images.

    Args:
        folder: The folder; created if it does not exist.
        evaluation: The evaluation. The page shows some samples and reference images, the training images nearest to
            samples, and plots over the guidance scales if there are several.
    """
    found, samples, reference, train = (
        evaluation.comparison,
        evaluation.samples,
        evaluation.reference,
        evaluation.train,
    )
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in summary(found.network, found.metrics)
    )
    sampling = f" Sampled with {samples.config.describe()}." if isinstance(samples, ModelSource) else ""
    rehearsal = evaluation.settings.get("rehearsal")
    parts = [
        f"<h1>{escape(samples.name)}</h1>",
        f"<p>{len(samples):,} samples against {len(reference):,} images of {escape(reference.name)}.{sampling}</p>",
        f"<p><b>A rehearsal: {escape(rehearsal)}</b></p>" if rehearsal else "",
        f"<table>{rows}</table>",
        _section(folder, "Samples", "samples.png", _class_sheet(samples)),
    ]
    if len(reference):
        parts.append(_section(folder, "Reference", "reference.png", _class_sheet(reference)))
    if train is not None and found.nearest is not None and found.held_out_similarities is not None:
        parts += _neighbours(folder, found, samples, train)
    if found.metrics.precision is not None:
        parts.append(f"<h2>Precision and recall</h2>{_precision_recall(found.network, found.metrics)}")
    if len(found.metrics.guidance) > 1:
        parts.append(f"<h2>Guidance</h2>{_guidance(found.network, found.metrics.guidance)}")
    text = json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False)
    parts.append(f"<h2>All metrics and settings</h2><pre>{escape(text)}</pre>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(samples.name)}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    write_atomically(folder / "index.html", lambda path: path.write_text(page, encoding="utf-8"))


def _section(folder: Path, title: str, name: str, image: Image.Image, text: str = "") -> str:
    write_atomically(folder / name, lambda path: image.save(path, format="PNG"))
    words = f"<p>{escape(text)}</p>" if text else ""
    return f'<h2>{escape(title)}</h2>{words}<img src="{name}" alt="{escape(title)}">'


def _class_sheet(source: Source) -> Image.Image:
    """Render the first images of the first classes, a row for each class; without classes, the first images."""
    if source.labels is None:
        some = range(min(len(source), _CLASSES * _COLUMNS))
        shown = _images(source, some)
        return sheet([shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)])
    classes = np.unique(source.labels)[:_CLASSES]
    chosen = [np.flatnonzero(source.labels == label)[:_COLUMNS].tolist() for label in classes]
    images = iter(_images(source, [index for row in chosen for index in row]))
    return sheet([[next(images) for _ in row] for row in chosen], row_names=[_class(source, row[0]) for row in chosen])


def _neighbours(folder: Path, found: Comparison, samples: Source, train: Source) -> list[str]:
    neighbours = found.metrics.neighbours
    assert found.nearest is not None
    assert found.held_out_similarities is not None
    assert neighbours is not None
    closest = found.nearest.similarities[:, 0]
    most = closest.topk(min(_COLUMNS, len(closest))).indices.tolist()
    labels = np.zeros(len(samples), np.int64) if samples.labels is None else samples.labels
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:_CLASSES]]
    curves = [
        Series("samples", _distribution(closest), dots=False),
        Series("held-out images", _distribution(found.held_out_similarities), dots=False),
    ]
    name = f"{found.network} cosine with the nearest training image"
    return [
        _section(
            folder,
            "The samples nearest to training images",
            "nearest.png",
            _neighbour_sheet(most, found, samples, train),
            "Left: each sample with its cosine. Right: its five nearest training images. Copies would show here. "
            f"{_COMPARED[neighbours.compared]}",
        ),
        _section(
            folder,
            "The first sample of each class" if samples.labels is not None else "The first sample",
            "neighbours.png",
            _neighbour_sheet(firsts, found, samples, train),
        ),
        f"<p>Copies move the curve of the samples to the right.</p>{plot(name, 'cosine', 'share', curves)}",
    ]


def _neighbour_sheet(indices: Sequence[int], found: Comparison, samples: Source, train: Source) -> Image.Image:
    assert found.nearest is not None
    near = found.nearest.indices[list(indices)]
    learned = iter(_images(train, near.flatten().tolist()))
    rows = [[image, *(next(learned) for _ in range(near.shape[1]))] for image in _images(samples, indices)]
    names = [f"{_class(samples, index)} {float(found.nearest.similarities[index, 0]):.3f}".strip() for index in indices]
    columns = ["sample", *(f"nearest {place}" for place in range(1, near.shape[1] + 1))]
    return sheet(rows, row_names=names, column_names=columns)


def _precision_recall(network: str, metrics: Metrics) -> str:
    entries = [entry.metrics for entry in metrics.guidance] or [metrics]
    points = [
        (entry.recall, entry.precision) for entry in entries if entry.recall is not None and entry.precision is not None
    ]
    marks = [f"{entry.cfg_scale:g}" for entry in metrics.guidance]
    title = f"{network} precision and recall" + (" by guidance scale" if metrics.guidance else "")
    return plot(title, "recall", "precision", [Series("", points, marks)], x_range=_SHARE, y_range=_SHARE)


def _guidance(network: str, guidance: Sequence[GuidanceMetrics]) -> str:
    """Plot each metric over the guidance scale."""
    entries = [entry.to_dict() for entry in guidance]
    plots = []
    for key, name in {**METRIC_NAMES, "recognised": UNANIMOUS}.items():
        if all(key in entry for entry in entries):
            points = [(entry["cfg_scale"], entry[key]) for entry in entries]
            limits = _SHARE if key in ("precision", "recall", "recognised") else None
            plots.append(plot(f"{network} {name}", "guidance scale", name, [Series("", points)], y_range=limits))
    return "".join(plots)


def _distribution(values: Tensor) -> list[tuple[float, float]]:
    """Return points (value, share of values up to it) of the cumulative distribution."""
    ordered = values.double().sort().values.tolist()
    places = np.unique(np.linspace(0, len(ordered) - 1, _CURVE_POINTS).round().astype(int))
    return [(ordered[place], (place + 1) / len(ordered)) for place in places.tolist()]


def _class(source: Source, index: int) -> str:
    if source.labels is None:
        return ""
    label = int(source.labels[index])
    return source.class_names[label] if source.class_names else f"class-{label}"


def _images(source: Source, indices: Sequence[int]) -> list[Image.Image]:
    return [Image.fromarray(image) for image in source.take(indices)]
