"""Settings that every metric depends on, written beside the metrics."""

from typing import Any

import torch

from aimamba import __version__
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.kernel import SUBSETS
from aimamba.evaluation.manifold import NEIGHBOURS
from aimamba.evaluation.neighbours import VOTERS


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
