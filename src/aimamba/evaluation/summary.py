"""Numbers as lines to read, each with the name of the network that it comes from."""

from collections.abc import Mapping
from typing import Any

NAMES = {
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
"""Of the numbers that are one value, in the order in which they are shown."""

_DISTANCES = ("fid", "sfid", "rfid", "rsfid", "inception_score", "frechet")


def summary(network: str, numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each number; Inception's kernel distance is called KID."""
    lines = []
    for key, name in NAMES.items():
        if key not in numbers:
            continue
        text = _rounded(key, numbers[key])
        if key == "kid":
            text = f"{text} ± {numbers['kid_std']:.5f} over subsets of {numbers['kid_subset_size']}"
        lines.append((f"{network} {_title(network, key, name)}", text))
    if found := numbers.get("recognition"):
        lines += _recognition(network, found)
    if found := numbers.get("neighbours"):
        text = f"{found['closer']:.1%} of samples (5.0% if nothing is copied); median cosine {found['similarity']:.3f}"
        lines.append((f"{network} nearer to {found['train']}", f"{text}, reference {found['similarity_held_out']:.3f}"))
    for entry in numbers.get("guidance", ()):
        lines.append((f"{network} at guidance {entry['cfg_scale']:g}", _in_one_line(network, entry)))
    return lines


def _in_one_line(network: str, numbers: Mapping[str, float]) -> str:
    parts = [
        f"{_title(network, key, name)} {_rounded(key, numbers[key])}" for key, name in NAMES.items() if key in numbers
    ]
    parts += [f"recognised {numbers['recognised']:.1%}"] if "recognised" in numbers else []
    return ", ".join(parts)


def _title(network: str, key: str, name: str) -> str:
    return "KID" if key == "kid" and network == "inception" else name


def _rounded(key: str, value: float) -> str:
    if key == "kid":
        return f"{value:.5f}"
    return f"{value:.2f}" if key in _DISTANCES else f"{value:.3f}"


def tokenizer_summary(numbers: Mapping[str, float]) -> list[tuple[str, str]]:
    """Name and value of each number that hangs on no network but LPIPS."""
    lines = [("PSNR", f"{numbers['psnr']:.2f} dB"), ("SSIM", f"{numbers['ssim']:.4f}")]
    lines.append(("SSIM as LlamaGen computes it", f"{numbers['ssim_llamagen']:.4f}"))
    if "lpips" in numbers:
        lines.append(("LPIPS (VGG16)", f"{numbers['lpips']:.4f}"))
    lines.append(("codes used", f"{numbers['codes_used']:.1%}, perplexity {numbers['perplexity']:.1f}"))
    return lines


def _recognition(network: str, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    itself = found["reference"]
    lines = [
        (f"{network} recognised", f"{found['share']:.1%}, the reference itself {itself['share']:.1%}"),
        (
            f"{network} recognised by majority",
            f"{found['majority']:.1%}, the reference itself {itself['majority']:.1%}",
        ),
    ]
    classes = sorted(found["per_class"].items(), key=lambda item: item[1])
    if len(classes) > 1:
        shown = ", ".join(f"{name} {share:.1%}" for name, share in classes[:10])
        lines.append((f"{network} recognised, by class", shown + (", ..." if len(classes) > 10 else "")))
    return lines
