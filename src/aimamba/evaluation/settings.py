"""Settings that every metric depends on, written beside the metrics."""

from collections.abc import Sequence
from typing import Any

import torch

from aimamba import __version__
from aimamba.config import check
from aimamba.data.image_files import ImageFiles
from aimamba.data.merged import MergedImages
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.kernel import SUBSETS
from aimamba.evaluation.manifold import NEIGHBOURS
from aimamba.evaluation.neighbours import VOTERS
from aimamba.evaluation.sources import Source
from aimamba.generation.sampling import LARGEST_SCALE

_SHOWN_FILES = 10


def check_sweep(scales: Sequence[float] | None) -> None:
    """Check guidance scales at which a model is sampled besides its own.

    Raises:
        ConfigError: One is out of range.
    """
    for scale in scales or ():
        message = f"--sweep expects guidance scales from 0 to {LARGEST_SCALE:,.0f}, got {scale:g}"
        check(0 <= scale <= LARGEST_SCALE, message)


def about_images(source: Source) -> dict[str, Any]:
    """Return name and number of the images, and the files that were left out because they cannot be read."""
    broken = source.broken if isinstance(source, ImageFiles | MergedImages) else ()
    left_out = {"broken": len(broken), "broken_files": list(broken[:_SHOWN_FILES])} if broken else {}
    return {"name": source.name, "count": len(source), **left_out}


def general_settings(extractor: Extractor) -> dict[str, Any]:
    """Return the network, the constants of the metrics, versions and device."""
    return {
        "features": dict(extractor.settings),
        "kid_subsets": SUBSETS,
        "precision_recall_neighbours": NEIGHBOURS,
        "recognition_neighbours": VOTERS,
        "aimamba": __version__,
        "torch": torch.__version__,
        "device": str(extractor.device),
    }
