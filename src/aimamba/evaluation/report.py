"""A page to look at: numbers, sheets of classes, nearest training images, plots, settings."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from aimamba.data.sheets import sheet
from aimamba.evaluation.compare import Comparison
from aimamba.evaluation.plots import Series, plot
from aimamba.evaluation.sources import ModelSource, Source
from aimamba.evaluation.summary import NAMES, summary
from aimamba.files import write_atomically

_CLASSES, _COLUMNS = 10, 8  # of a sheet
_CURVE = 200  # points of a distribution
_SHARE = (0.0, 1.0)
_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
td { padding: 2px 1.5em 2px 0; vertical-align: top } td:first-child { white-space: nowrap }
img { max-width: 100% } pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 13px }
p { color: #555; max-width: 50em }
"""


def write_report(
    folder: Path,
    found: Comparison,
    settings: Mapping[str, Any],
    *,
    samples: Source,
    reference: Source,
    train: Source | None = None,
) -> None:
    """Write ``index.html`` and its images.

    Args:
        folder: Where to; made if need be.
        found: The numbers; ``guidance`` among them, where several scales were measured, is plotted.
        settings: Printed below.
        samples: What was judged; some of it is shown.
        reference: Real images, shown beside.
        train: Training images, of which the samples' neighbours are shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in summary(found.network, found.numbers)
    )
    drawn = f" Drawn with {samples.config.describe()}." if isinstance(samples, ModelSource) else ""
    parts = [
        f"<h1>{escape(samples.name)}</h1>",
        f"<p>{len(samples):,} samples against {len(reference):,} images of {escape(reference.name)}.{drawn}</p>",
        f"<table>{rows}</table>",
        _section(folder, "Samples", "samples.png", _class_sheet(samples)),
    ]
    if len(reference):
        parts.append(_section(folder, "Reference", "reference.png", _class_sheet(reference)))
    if train is not None and found.nearest is not None and found.unseen is not None:
        parts += _neighbours(folder, found, samples, train)
    guidance = found.numbers.get("guidance", ())
    if "precision" in found.numbers:
        parts.append(f"<h2>Precision and recall</h2>{_precision_recall(found, guidance)}")
    if len(guidance) > 1:
        parts.append(f"<h2>Guidance</h2>{_guidance(found.network, guidance)}")
    text = json.dumps({found.network: found.numbers, "settings": settings}, indent=2, ensure_ascii=False)
    parts.append(f"<h2>Every number and setting</h2><pre>{escape(text)}</pre>")
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
    """The first images of the first classes, a row for each; without classes the first images."""
    if source.labels is None:
        some = range(min(len(source), _CLASSES * _COLUMNS))
        shown = _images(source, some)
        return sheet([shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)])
    classes = np.unique(source.labels)[:_CLASSES]
    chosen = [np.flatnonzero(source.labels == label)[:_COLUMNS].tolist() for label in classes]
    images = iter(_images(source, [index for row in chosen for index in row]))
    return sheet([[next(images) for _ in row] for row in chosen], row_names=[_class(source, row[0]) for row in chosen])


def _neighbours(folder: Path, found: Comparison, samples: Source, train: Source) -> list[str]:
    assert found.nearest is not None
    assert found.unseen is not None
    closest = found.nearest.similarities[:, 0]
    most = closest.topk(min(_COLUMNS, len(closest))).indices.tolist()
    labels = np.zeros(len(samples), np.int64) if samples.labels is None else samples.labels
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:_CLASSES]]
    curves = [
        Series("samples", _distribution(closest), dots=False),
        Series("unseen real images", _distribution(found.unseen), dots=False),
    ]
    name = f"{found.network} cosine with the nearest training image"
    return [
        _section(
            folder,
            "The samples nearest to training images",
            "nearest.png",
            _neighbour_sheet(most, found, samples, train),
            "Left the sample with its cosine, right the five nearest training images. Here copies would be seen.",
        ),
        _section(
            folder,
            "The first sample of each class" if samples.labels is not None else "The first sample",
            "neighbours.png",
            _neighbour_sheet(firsts, found, samples, train),
        ),
        f"<p>Samples that copy lie to the right of unseen real images.</p>{plot(name, 'cosine', 'share', curves)}",
    ]


def _neighbour_sheet(indices: Sequence[int], found: Comparison, samples: Source, train: Source) -> Image.Image:
    assert found.nearest is not None
    near = found.nearest.indices[list(indices)]
    learned = iter(_images(train, near.flatten().tolist()))
    rows = [[image, *(next(learned) for _ in range(near.shape[1]))] for image in _images(samples, indices)]
    names = [f"{_class(samples, index)} {float(found.nearest.similarities[index, 0]):.3f}".strip() for index in indices]
    columns = ["sample", *(f"nearest {place}" for place in range(1, near.shape[1] + 1))]
    return sheet(rows, row_names=names, column_names=columns)


def _precision_recall(found: Comparison, guidance: Sequence[Mapping[str, float]]) -> str:
    entries = list(guidance) or [found.numbers]
    points = [(entry["recall"], entry["precision"]) for entry in entries]
    marks = [f"{entry['cfg_scale']:g}" for entry in entries] if guidance else []
    title = f"{found.network} precision and recall" + (" by guidance scale" if guidance else "")
    return plot(title, "recall", "precision", [Series("", points, marks)], x_range=_SHARE, y_range=_SHARE)


def _guidance(network: str, guidance: Sequence[Mapping[str, float]]) -> str:
    plots = []
    for key, name in {**NAMES, "recognised": "recognised"}.items():
        if all(key in entry for entry in guidance):
            points = [(entry["cfg_scale"], entry[key]) for entry in guidance]
            limits = _SHARE if key in ("precision", "recall", "recognised") else None
            plots.append(plot(f"{network} {name}", "guidance scale", name, [Series("", points)], y_range=limits))
    return "".join(plots)


def _distribution(values: Tensor) -> list[tuple[float, float]]:
    """(value, share of values up to it), thinned out."""
    ordered = values.double().sort().values.tolist()
    places = np.unique(np.linspace(0, len(ordered) - 1, _CURVE).round().astype(int))
    return [(ordered[place], (place + 1) / len(ordered)) for place in places.tolist()]


def _class(source: Source, index: int) -> str:
    if source.labels is None:
        return ""
    label = int(source.labels[index])
    return source.class_names[label] if source.class_names else f"class-{label}"


def _images(source: Source, indices: Sequence[int]) -> list[Image.Image]:
    return [Image.fromarray(image) for image in source.take(indices)]
