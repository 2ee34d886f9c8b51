"""Evaluation of a tokenizer: errors of its reconstructions, distance between the sets, use of the codebook."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from aimamba.config import check
from aimamba.data.sheets import to_float, to_uint8
from aimamba.evaluation.compare import distances
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.lpips import lpips_distances, lpips_settings
from aimamba.evaluation.measure import FeatureCollector, check_enough, to_channels_first
from aimamba.evaluation.metrics import Metrics, ReconstructionMetrics
from aimamba.evaluation.settings import about_images, general_settings
from aimamba.evaluation.sources import Source
from aimamba.generation.fast_decoder.decoder import FastDecoder
from aimamba.models import VQModel
from aimamba.networks.perceptual import PerceptualLoss
from aimamba.ops.psnr import psnr
from aimamba.ops.ssim import gaussian_window, ssim, uniform_window

_SMALLEST = 11  # pixels, the side of SSIM's window


@dataclass(frozen=True, kw_only=True)
class TokenizerComparison:
    """Images compared with their reconstructions.

    Attributes:
        network: Name of the network whose features were compared.
        distances: Distances between the two sets; Inception's are ``rfid`` and ``rsfid``.
        reconstruction: Errors of each pair, averaged, and use of the codebook.
    """

    network: str
    distances: Metrics
    reconstruction: ReconstructionMetrics


def compare_tokenizer(
    model: VQModel,
    images: Source,
    extractor: Extractor,
    *,
    lpips: PerceptualLoss | None = None,
    progress: bool = False,
) -> TokenizerComparison:
    """Compare images with their reconstructions, both rounded to 8 bits.

    The codes are decoded by ``FastDecoder``, as in ``Pipeline``.

    Args:
        model: The tokenizer, in evaluation mode.
        images: Images that it was not trained on.
        extractor: Computes the features for the distances between the two sets.
        lpips: Compares each pair, where given.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: The images' side is not a multiple of the down-sampling, or is below 11 pixels.
        DataError: There are fewer than two images, or features contain NaN or infinity.
    """
    check(images.size >= _SMALLEST, f"SSIM needs images of at least {_SMALLEST} pixels, got {images.size}")
    factor = model.config.downsampling
    check(
        images.size % factor == 0,
        f"the tokenizer needs images whose side is a multiple of {factor}, its down-sampling; got {images.size}",
    )
    check_enough(images)
    real, reconstructed = (FeatureCollector(extractor, len(images)) for _ in range(2))
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    decoder = FastDecoder(model)
    sums: dict[str, float] = {}
    with tqdm(total=len(images), desc="reconstructing", unit="image", disable=not progress) as bar:
        for batch in images.batches(extractor.batch_size):
            originals = to_channels_first(batch)
            codes = model.encode(to_float(originals).to(model.device))
            reconstructions = to_uint8(decoder(codes)).cpu()
            counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
            for name, values in _errors(reconstructions, originals, lpips).items():
                sums[name] = sums.get(name, 0.0) + float(values.double().sum())
            real.add(originals)
            reconstructed.add(reconstructions)
            bar.update(len(batch))
    found = distances(reconstructed.result(), real.result(), progress=progress)
    means = {name: total / len(images) for name, total in sums.items()}
    return TokenizerComparison(
        network=extractor.name,
        distances=replace(found, fid=None, rfid=found.fid, sfid=None, rsfid=found.sfid),
        reconstruction=ReconstructionMetrics(
            **means, codes_used=float((counts > 0).double().mean()), perplexity=perplexity(counts)
        ),
    )


def tokenizer_report(
    found: TokenizerComparison,
    images: Source,
    extractor: Extractor,
    *,
    tokenizer: str,
    dtype: str,
    lpips: PerceptualLoss | None = None,
) -> dict[str, Any]:
    """Return the JSON object with every metric and the settings that it depends on.

    Args:
        found: The metrics.
        images: The images that were compared.
        extractor: Computed the features.
        tokenizer: Name of the tokenizer.
        dtype: Precision of the tokenizer.
        lpips: Compared each pair, where given.
    """
    settings = {
        "tokenizer": tokenizer,
        "dtype": dtype,
        "pictures": {**about_images(images), "size": images.size},
        **general_settings(extractor),
        **lpips_settings(lpips),
    }
    return {
        found.network: found.distances.to_dict(),
        "tokenizer": found.reconstruction.to_dict(),
        "settings": settings,
    }


def perplexity(counts: Int[Tensor, " v"]) -> float:
    """Return ``exp`` of the entropy of the codes: the number of equally frequent codes with the same entropy."""
    shares = counts.double() / counts.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


@torch.no_grad()
def _errors(
    reconstructed: UInt8[Tensor, "b 3 s s"], real: UInt8[Tensor, "b 3 s s"], lpips: PerceptualLoss | None
) -> dict[str, Tensor]:
    """Return the errors of each pair, each (B,).

    ``ssim_llamagen`` follows the computation of LlamaGen's published 0.675: a 7 x 7 uniform window, variances divided
    by n - 1, and a data range of 2 although the values lie in [0, 1], which raises it.
    """
    x, y = reconstructed.double(), real.double()
    found = {
        "psnr": psnr(x, y, data_range=255.0),
        "ssim": ssim(x, y, gaussian_window(), data_range=255.0),
        "ssim_llamagen": ssim(x / 255, y / 255, uniform_window(), data_range=2.0, unbiased=True),
    }
    if lpips is not None:
        found["lpips"] = lpips_distances(lpips, reconstructed, real)
    return found
