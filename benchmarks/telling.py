"""The most telling figures of a GPU, the best first, each within its own time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.measurement import Measurement
from benchmarks.peers import PEERS

TRAINING_BATCH = 32
RECORDED, OPTIMIZER, GRAPH = "CUDA graph", "with the optimiser", "with the optimiser, CUDA graph"

Row = tuple[str, str, str, str, int, float]
"""Section, subject, variant, size, batch, and the seconds that the process may take at most."""

FIGURES: tuple[Row, ...] = (
    ("sampling", "aim", "cuda-graphs", "aim-xl", 64, 40.0),
    ("sampling", "aim", "cuda-graphs-int8", "aim-xl", 64, 40.0),
    ("sampling", "aim", "cuda-graphs", "aim-l", 1, 40.0),
    ("sampling", "aim", "cuda-graphs", "aim-b", 1, 30.0),
    ("training", "aim", RECORDED, "aim-b", TRAINING_BATCH, 40.0),
    ("training", "aim", GRAPH, "aim-b", TRAINING_BATCH, 45.0),
    ("training", "llamagen", RECORDED, "aim-b", TRAINING_BATCH, 40.0),
    ("training", "llamagen", "", "aim-b", TRAINING_BATCH, 40.0),
    ("training", "aim", RECORDED, "aim-xl", TRAINING_BATCH, 45.0),
    ("training", "aim", RECORDED, "aim-l", TRAINING_BATCH, 40.0),
    ("sampling", "aim", "cuda-graphs-int8", "aim-xl", 256, 45.0),
    ("kernels", "copy", "", "aim-b", 1, 25.0),
    ("profile", "training", "", "aim-b", TRAINING_BATCH, 40.0),
    ("profile", "sampling", "cuda-graphs", "aim-xl", 64, 40.0),
    ("profile", "sampling", "cuda-graphs", "aim-l", 1, 40.0),
    ("decoder", "aim", "fast", "aim-b", 64, 30.0),
    ("training", "aim", GRAPH, "aim-xl", TRAINING_BATCH, 50.0),
    ("training", "aim", GRAPH, "aim-l", TRAINING_BATCH, 45.0),
    ("training", "llamagen", RECORDED, "aim-xl", TRAINING_BATCH, 45.0),
    ("training", "llamagen", RECORDED, "aim-l", TRAINING_BATCH, 40.0),
    ("training", "aim", "", "aim-b", TRAINING_BATCH, 40.0),
    ("ceilings", "products", "", "aim-b", 1, 25.0),
    ("ceilings", "bandwidth", "", "aim-b", 1, 25.0),
    ("kernels", "step", "", "aim-xl", 64, 40.0),
    ("kernels", "step", "", "aim-l", 1, 40.0),
    ("kernels", "training", "layouts", "aim-b", TRAINING_BATCH, 150.0),
    ("sampling", "aim", "cuda-graphs", "aim-xl", 128, 40.0),
    ("sampling", "aim", "cuda-graphs", "aim-xl", 256, 45.0),
    ("training", "aim", OPTIMIZER, "aim-b", TRAINING_BATCH, 40.0),
    ("decoder", "aim", "plain", "aim-b", 64, 30.0),
    ("decoder", "aim", "fast", "aim-b", 1, 25.0),
    ("scan", "triton", "", "aim-b", TRAINING_BATCH, 40.0),
    ("training", "aim", "blocks compiled", "aim-b", TRAINING_BATCH, 90.0),
    ("sampling", "official", "", "aim-xl", 64, 60.0),
    ("sampling", "official", "", "aim-l", 1, 60.0),
    ("sampling", "llamagen", "", "aim-xl", 64, 40.0),
    ("sampling", "llamagen", "", "aim-l", 1, 40.0),
    ("training", "llamagen", "compiled", "aim-b", TRAINING_BATCH, 120.0),
    ("sampling", "llamagen", "compiled", "aim-l", 1, 150.0),
    ("decoder", "vq-official", "channels last", "aim-b", 64, 30.0),
    ("training", "official", "", "aim-b", TRAINING_BATCH, 120.0),
)
_LIMIT = 6.0  # seconds of measuring; building, compiling and warming up come on top


def telling(base: Measurement, sections: Sequence[str], paths: dict[str, str]) -> Iterator[Measurement]:
    """Yield the figures of the chosen sections, in order; peers only where their folder is named."""
    for section, subject, variant, size, batch, box in FIGURES:
        peer = "llamagen" if subject == "vq-official" else subject
        if section in sections and (peer not in (*PEERS, "llamagen") or peer in paths):
            yield replace(
                base,
                section=section,
                subject=subject,
                variant=variant,
                dtype="bfloat16",
                batch=2 if base.quick else batch,
                size=size,
                limit_seconds=min(base.limit_seconds, _LIMIT),
                box_seconds=box,
            )
