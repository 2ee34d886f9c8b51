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
    # What is aimed at: images with the decoder, and times those of the official code and of LlamaGen.
    ("images", "aim", "cuda-graphs", "aim-xl", 64, 45.0),
    ("sampling", "aim", "cuda-graphs", "aim-xl", 64, 40.0),
    ("sampling", "official", "", "aim-xl", 64, 60.0),
    ("sampling", "aim", "cuda-graphs", "aim-l", 1, 40.0),
    ("sampling", "official", "", "aim-l", 1, 60.0),
    ("training", "aim", RECORDED, "aim-b", TRAINING_BATCH, 40.0),
    ("training", "llamagen", RECORDED, "aim-b", TRAINING_BATCH, 40.0),
    ("images", "aim", "cuda-graphs", "aim-xl", 256, 50.0),
    ("ceilings", "bandwidth", "", "aim-b", 1, 20.0),
    ("ceilings", "products", "", "aim-b", 1, 20.0),
    ("training", "aim", GRAPH, "aim-b", TRAINING_BATCH, 45.0),
    ("training", "aim", RECORDED, "aim-xl", TRAINING_BATCH, 45.0),
    ("training", "aim", RECORDED, "aim-l", TRAINING_BATCH, 40.0),
    ("images", "aim", "cuda-graphs", "aim-xl", 512, 60.0),
    ("images", "aim", "cuda-graphs", "aim-xl", 128, 45.0),
    ("images", "aim", "cuda-graphs", "aim-l", 1, 40.0),
    ("sampling", "aim", "cuda-graphs", "aim-b", 1, 30.0),
    ("kernels", "copy", "", "aim-b", 1, 25.0),
    ("kernels", "training", "", "aim-b", TRAINING_BATCH, 60.0),
    ("profile", "training", "", "aim-b", TRAINING_BATCH, 40.0),
    ("profile", "sampling", "cuda-graphs", "aim-xl", 64, 40.0),
    ("profile", "sampling", "cuda-graphs", "aim-l", 1, 40.0),
    ("decoder", "aim", "fast", "aim-b", 64, 30.0),
    ("training", "llamagen", RECORDED, "aim-xl", TRAINING_BATCH, 45.0),
    ("training", "llamagen", RECORDED, "aim-l", TRAINING_BATCH, 40.0),
    ("sampling", "llamagen", "", "aim-xl", 64, 40.0),
    ("sampling", "llamagen", "", "aim-l", 1, 40.0),
    # The rest of what the profiles show, and other ways.
    ("sampling", "aim", "cuda-graphs-int8", "aim-xl", 64, 40.0),
    ("images", "aim", "cuda-graphs-int8", "aim-xl", 256, 50.0),
    ("training", "aim", GRAPH, "aim-xl", TRAINING_BATCH, 50.0),
    ("training", "aim", GRAPH, "aim-l", TRAINING_BATCH, 45.0),
    ("kernels", "step", "", "aim-xl", 64, 40.0),
    ("kernels", "step", "", "aim-l", 1, 40.0),
    ("training", "aim", "", "aim-b", TRAINING_BATCH, 40.0),
    ("training", "llamagen", "", "aim-b", TRAINING_BATCH, 40.0),
    ("sampling", "aim", "cuda-graphs", "aim-xl", 256, 45.0),
    ("training", "aim", OPTIMIZER, "aim-b", TRAINING_BATCH, 40.0),
    ("decoder", "aim", "plain", "aim-b", 64, 30.0),
    ("decoder", "aim", "fast", "aim-b", 1, 25.0),
    ("decoder", "vq-official", "channels last", "aim-b", 64, 30.0),
    ("kernels", "training", "layouts", "aim-b", TRAINING_BATCH, 150.0),
    ("training", "aim", "blocks compiled", "aim-b", TRAINING_BATCH, 90.0),
    ("training", "llamagen", "compiled", "aim-b", TRAINING_BATCH, 120.0),
    ("sampling", "llamagen", "compiled", "aim-l", 1, 150.0),
    ("training", "official", "", "aim-b", TRAINING_BATCH, 120.0),
)
_LIMITS = {"ceilings": 2.0}  # seconds of measuring; building, compiling and warming up come on top
_USUAL_LIMIT = 6.0
_WITH_FLOORS = ("sampling", "training")  # what ceilings are needed for


def telling(base: Measurement, sections: Sequence[str], paths: dict[str, str]) -> Iterator[Measurement]:
    """Yield the figures of the chosen sections, in order; peers only where their folder is named.

    Ceilings come along with what has a floor, whether they are chosen or not.
    """
    chosen = {*sections, *(["ceilings"] if any(each in sections for each in _WITH_FLOORS) else [])}
    for section, subject, variant, size, batch, box in FIGURES:
        peer = "llamagen" if subject == "vq-official" else subject
        if section in chosen and (peer not in (*PEERS, "llamagen") or peer in paths):
            yield replace(
                base,
                section=section,
                subject=subject,
                variant=variant,
                dtype="bfloat16",
                batch=2 if base.quick else batch,
                size=size,
                limit_seconds=min(base.limit_seconds, _LIMITS.get(section, _USUAL_LIMIT)),
                box_seconds=box,
            )
