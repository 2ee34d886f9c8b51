"""Metrics as lines of a table; each line names the network that the metric comes from."""

from aimamba.evaluation.metrics import (
    GuidanceMetrics,
    Metrics,
    Recognition,
    ReconstructionMetrics,
    TrainingNeighbours,
)

METRIC_NAMES = {
    "fid": "FID",
    "sfid": "sFID",
    "rfid": "rFID",
    "rsfid": "rsFID",
    "inception_score": "Inception score",
    "frechet": "Fréchet distance",
    "kid": "kernel distance",
    "precision": "precision",
    "recall": "recall",
}
"""Fields of ``Metrics`` that are one number, with their names, in the order in which they are shown."""

UNANIMOUS = "5-NN accuracy, unanimous"
MAJORITY = "5-NN accuracy, majority"

_TWO_DIGITS = ("fid", "sfid", "rfid", "rsfid", "inception_score", "frechet")
_SHOWN_CLASSES = 10


def summary(network: str, metrics: Metrics) -> list[tuple[str, str]]:
    """Return name and value of each metric; Inception's kernel distance is called KID."""
    lines = []
    for key, value in _single_numbers(metrics).items():
        text = _rounded(key, value)
        if key == "kid":
            text = f"{text} ± {metrics.kid_std:.5f} over subsets of {metrics.kid_subset_size}"
        lines.append((f"{network} {_title(network, key)}", f"{text}{_few(metrics, key)}"))
    if metrics.recognition is not None:
        lines += _accuracy(network, metrics.recognition, _few(metrics, "recognition"))
    if metrics.neighbours is not None:
        lines += _copies(network, metrics.neighbours)
    lines += [(f"{network} at guidance {entry.cfg_scale:g}", _one_line(network, entry)) for entry in metrics.guidance]
    return lines


def reconstruction_summary(metrics: ReconstructionMetrics) -> list[tuple[str, str]]:
    """Return name and value of each metric that compares images with their reconstructions one by one."""
    lines = [("PSNR", f"{metrics.psnr:.2f} dB"), ("SSIM", f"{metrics.ssim:.4f}")]
    lines.append(("SSIM as LlamaGen computes it", f"{metrics.ssim_llamagen:.4f}"))
    if metrics.lpips is not None:
        lines.append(("LPIPS (VGG16)", f"{metrics.lpips:.4f}"))
    lines.append(("codes used", f"{metrics.codes_used:.1%}, perplexity {metrics.perplexity:.1f}"))
    return lines


def _few(metrics: Metrics, key: str) -> str:
    """Return a note where a number was measured on fewer images than it takes."""
    count, enough = metrics.few_images.get(key, (0, 0))
    return f"  (few images: {count:,}, needs {enough:,})" if enough else ""


def _single_numbers(metrics: Metrics) -> dict[str, float]:
    found = {key: getattr(metrics, key) for key in METRIC_NAMES}
    return {key: value for key, value in found.items() if value is not None}


def _one_line(network: str, entry: GuidanceMetrics) -> str:
    parts = [f"{_title(network, key)} {_rounded(key, value)}" for key, value in _single_numbers(entry.metrics).items()]
    parts += [] if entry.unanimous_accuracy is None else [f"unanimous 5-NN accuracy {entry.unanimous_accuracy:.1%}"]
    return ", ".join(parts)


def _title(network: str, key: str) -> str:
    return "KID" if key == "kid" and network == "inception" else METRIC_NAMES[key]


def _rounded(key: str, value: float) -> str:
    if key == "kid":
        return f"{value:.5f}"
    return f"{value:.2f}" if key in _TWO_DIGITS else f"{value:.3f}"


def _copies(network: str, neighbours: TrainingNeighbours) -> list[tuple[str, str]]:
    train, found, codes = neighbours.train, neighbours.copying, neighbours.codes
    text = f"{found.closer:.1%} of samples (5.0% without copies); median cosine {found.similarity:.3f}"
    text = f"{text}, reference {found.similarity_held_out:.3f}"
    if codes is None:
        hint = "compared with originals: blurred copies are missed, --model finds them"
        return [(f"{network} closer to {train}", f"{text}; {hint}")]
    equal = f"{codes.equal:.1%} of samples have all codes of a training image, reference {codes.equal_held_out:.1%}"
    differing = f"the nearest differs in {codes.differing:g} of {codes.codes} in the median"
    return [
        (f"{network} closer to {train}", f"{text}; compared with reconstructions"),
        (f"codes of {train}", f"{equal}; {differing}, reference {codes.differing_held_out:g}"),
    ]


def _accuracy(network: str, found: Recognition, few: str) -> list[tuple[str, str]]:
    samples, reference = found.samples, found.reference
    lines = [
        (f"{network} {UNANIMOUS}", f"{samples.unanimous:.1%}, the reference itself {reference.unanimous:.1%}{few}"),
        (f"{network} {MAJORITY}", f"{samples.majority:.1%}, the reference itself {reference.majority:.1%}{few}"),
    ]
    classes = sorted(samples.per_class.items(), key=lambda item: item[1])
    if len(classes) > 1:
        shown = ", ".join(f"{name} {share:.1%}" for name, share in classes[:_SHOWN_CLASSES])
        lines.append((f"{network} {UNANIMOUS}, by class", shown + (", ..." if len(classes) > _SHOWN_CLASSES else "")))
    return lines
