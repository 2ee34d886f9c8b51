"""Evaluation protocols: the settings that published numbers were measured with."""

from dataclasses import replace

from aimamba.config import check
from aimamba.errors import DataError
from aimamba.evaluation.metrics import Metrics
from aimamba.evaluation.npz import stored_statistics
from aimamba.evaluation.sources import Source
from aimamba.generation import SamplingConfig
from aimamba.models import AIM_PRESETS, AiMConfig

PROTOCOLS = ("aim-paper",)
IMAGES = 50_000
LABELS = "random"

_POSITION_SHIFT = 1  # of the official sampler, which generated the published samples
_SCALES = {"aim-b": 2.0, "aim-l": 1.75, "aim-xl": 1.75}
_PAPER = {
    "aim-b": (3.52, 250.1, 0.83, 0.52),
    "aim-l": (2.83, 244.6, 0.82, 0.55),
    "aim-xl": (2.56, 257.2, 0.82, 0.57),
    "aim-1b": (2.21, 256.0, 0.82, 0.55),
}
"""FID, Inception score, precision and recall of Table 2."""

REFERENCE = (
    "fetch https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz (2.0 GB; no SHA-256 of it is published)"
)
"""How to get the reference."""


def aim_paper(config: SamplingConfig, shape: AiMConfig) -> SamplingConfig:
    """Return the sampling settings of Table 2 of AiM (arXiv 2408.12245), as the authors describe them.

    Args:
        config: The user's settings. Guidance 1 stands for the published scale: 2.0 for AiM-B, 1.75 for AiM-L and
            AiM-XL. A model of another size needs an explicit scale.
        shape: The generator's config.

    Raises:
        ConfigError: A setting contradicts the protocol, or the generator's positions differ from the official ones.
    """
    allowed = SamplingConfig(cfg_scale=config.cfg_scale, seed=config.seed)
    check(config == allowed, "aim-paper samples at temperature 1 with constant guidance, without top-k or top-p")
    check(
        shape.decode_position_shift == _POSITION_SHIFT,
        f"aim-paper needs decode_position_shift {_POSITION_SHIFT}, as official weights have; this model has "
        f"{shape.decode_position_shift}",
    )
    name = _preset(shape)
    if name not in _SCALES:
        check(config.cfg_scale != 1, "aim-paper has a guidance scale for AiM-B, -L and -XL only; give --cfg-scale")
        return config
    scale = _SCALES[name]
    check(config.cfg_scale in (1, scale), f"aim-paper fixes guidance {scale} for {name}, got {config.cfg_scale}")
    return replace(config, cfg_scale=scale)


def check_paper_reference(reference: Source) -> None:
    """Check that a reference has every part of ADM's reference files.

    Raises:
        DataError: Images, ``mu``, ``sigma``, ``mu_s`` or ``sigma_s`` are missing.
    """
    stored = stored_statistics(reference)
    if not len(reference) or stored is None or stored.spatial is None:
        raise DataError(
            f"{reference.name}: aim-paper needs images and Inception's statistics (arr_0, mu, sigma, mu_s, sigma_s), "
            f"as ADM's VIRTUAL_imagenet256_labeled.npz has them; {REFERENCE}"
        )


def row(shape: AiMConfig, metrics: Metrics) -> str:
    """Return the metrics as a row of Table 2: FID, Inception score, precision, recall; and the paper's, if it has any.

    Args:
        shape: The generator's config.
        metrics: Of Inception.
    """
    found = metrics.fid, metrics.inception_score, metrics.precision, metrics.recall
    shown = " | ".join("-" if value is None else f"{value:.2f}" for value in found)
    name = _preset(shape)
    paper = " | ".join(f"{value:.2f}" for value in _PAPER[name]) if name in _PAPER else ""
    return f"{shown}" + (f" (the paper's {name}: {paper})" if paper else "")


def _preset(shape: AiMConfig) -> str | None:
    """Return the name of the published size that a generator has."""
    sizes = {name: (preset.width, preset.num_blocks) for name, preset in AIM_PRESETS.items() if name in _PAPER}
    return next((name for name, size in sizes.items() if size == (shape.width, shape.num_blocks)), None)
