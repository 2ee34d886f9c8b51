"""What a tokenizer keeps of images: errors of the images, distance between the sets, use of the codes."""

from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from aimamba.config import check
from aimamba.data.sheets import to_float, to_uint8
from aimamba.evaluation.compare import distances
from aimamba.evaluation.features import Extractor
from aimamba.evaluation.measure import Collector, check_enough, to_channels_first
from aimamba.evaluation.sources import Source
from aimamba.generation.fast_decoder.decoder import FastDecoder
from aimamba.models import VQModel
from aimamba.networks.perceptual import PerceptualLoss
from aimamba.ops.ssim import gaussian_window, ssim, uniform_window

_SMALLEST = 11  # pixels, of SSIM's window


def compare_tokenizer(
    model: VQModel,
    images: Source,
    extractor: Extractor,
    *,
    lpips: PerceptualLoss | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Compare images with what the tokenizer makes of them, both rounded to 8 bits.

    They are drawn as ``Pipeline`` draws, by ``FastDecoder``.

    Args:
        model: The tokenizer, in evaluation mode.
        images: Those it has not learned from.
        extractor: Compares the two sets.
        lpips: Compares each pair.
        progress: Show a bar on stderr.

    Returns:
        Distances between the sets (``rfid`` from Inception), and the rest: ``psnr`` (dB) and ``ssim``, means over
        images; ``ssim_llamagen``; ``lpips`` where it was given; ``codes_used``, a share of the codebook;
        ``perplexity`` of the codes.

    Raises:
        ConfigError: The images' side is no multiple of the down-sampling, or below 11 pixels.
        DataError: There are fewer than two images, or features are no numbers.
    """
    check(images.size >= _SMALLEST, f"SSIM needs images of at least {_SMALLEST} pixels, got {images.size}")
    factor = model.config.downsampling
    check(
        images.size % factor == 0,
        f"the tokenizer needs images whose side is a multiple of {factor}, its down-sampling; got {images.size}",
    )
    check_enough(images)
    real, drawn = (Collector(extractor, len(images)) for _ in range(2))
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    decoder = FastDecoder(model)
    sums: dict[str, float] = {}
    with tqdm(total=len(images), desc="reconstructing", unit="image", disable=not progress) as bar:
        for batch in images.batches(extractor.batch_size):
            originals = to_channels_first(batch)
            codes = model.encode(to_float(originals).to(model.codebook))
            reconstructions = to_uint8(decoder(codes)).cpu()
            counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
            for name, values in _errors(reconstructions, originals, lpips).items():
                sums[name] = sums.get(name, 0.0) + float(values.double().sum())
            real.add(originals)
            drawn.add(reconstructions)
            bar.update(len(batch))
    found = distances(drawn.measured(), real.measured(), progress=progress)
    means = {name: total / len(images) for name, total in sums.items()}
    return {f"r{name}" if name in ("fid", "sfid") else name: value for name, value in found.items()}, {
        **means,
        "codes_used": float((counts > 0).double().mean()),
        "perplexity": perplexity(counts),
    }


def perplexity(counts: Int[Tensor, " v"]) -> float:
    """``exp`` of the entropy of the codes: how many equally frequent ones would be as hard to guess."""
    shares = counts.double() / counts.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


@torch.no_grad()
def _errors(
    drawn: UInt8[Tensor, "b 3 s s"], real: UInt8[Tensor, "b 3 s s"], lpips: PerceptualLoss | None
) -> dict[str, Tensor]:
    """Of each pair.

    ``ssim_llamagen`` is how LlamaGen's published 0.675 was computed: 7 x 7 uniform window, variances with n - 1, and a
    data range of 2 although its values lie in [0, 1], which raises it.
    """
    x, y = drawn.double(), real.double()
    squares = (x - y).square().mean(dim=(1, 2, 3))
    found = {
        "psnr": 10 * torch.log10(255**2 / squares.clamp(min=1e-10)),
        "ssim": ssim(x, y, gaussian_window(), data_range=255.0),
        "ssim_llamagen": ssim(x / 255, y / 255, uniform_window(), data_range=2.0, unbiased=True),
    }
    if lpips is not None:
        place = next(lpips.parameters()).device
        found["lpips"] = lpips.distances(to_float(drawn).to(place), to_float(real).to(place)).cpu()
    return found
