"""Seconds that the tokenizer takes to decode codes into an image of 256 x 256 pixels."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from aimamba.generation.fast_decoder.decoder import FastDecoder
from aimamba.models import VQ_PRESETS, VQConfig, VQModel
from benchmarks.measurement import Measurement, SkippedError, UnavailableError, spread
from benchmarks.timing import peak_bytes, repeated, reset_peak

QUICK = VQConfig(
    channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=64, codebook_dim=4, norm_groups=4
)

Decode = Callable[[Tensor], object]
"""Decodes codes (B, h, w) into images."""


def measure_decoder(measurement: Measurement) -> dict[str, Any]:
    """Decode a batch of random codes.

    Returns:
        ``seconds_per_picture`` with its spread and ``peak_bytes``.
    """
    torch.manual_seed(0)
    device = torch.device(measurement.device)
    dtype = getattr(torch, measurement.dtype)
    config = QUICK if measurement.quick else VQ_PRESETS["vq-f16"]
    builders = {"aim": _ours, "vq-official": _official}
    decode = builders[measurement.subject](measurement, config, dtype, device)
    reset_peak(device)
    side = 4 if measurement.quick else 16
    codes = torch.randint(config.codebook_size, (measurement.batch, side, side), device=device)
    with torch.inference_mode():
        taken = repeated(lambda: decode(codes), device, limit=measurement.limit_seconds, least=2, most=10)
    return {
        "seconds_per_picture": spread([seconds / measurement.batch for seconds in taken]),
        "peak_bytes": peak_bytes(device),
    }


def _ours(measurement: Measurement, config: VQConfig, dtype: torch.dtype, device: torch.device) -> Decode:
    """The plain module, or the fast decoder of ``Pipeline`` with or without the C++ kernel."""
    model = VQModel(config).cast(dtype).to(device).eval()
    if measurement.variant == "plain":
        return model.decode
    return FastDecoder(model, native=measurement.variant == "fast")


def _official(measurement: Measurement, config: VQConfig, dtype: torch.dtype, device: torch.device) -> Decode:
    """LlamaGen's module, which the official AiM uses as well."""
    if measurement.quick:
        raise SkippedError("LlamaGen's tokenizer has no tiny size")
    sys.path.append(dict(measurement.paths)["llamagen"])
    try:
        model = import_module("tokenizer.tokenizer_image.vq_model").VQ_models["VQ-16"]()
    except ImportError as error:
        raise UnavailableError(f"peer 'llamagen' cannot be imported: {error}") from error
    layout = torch.channels_last if measurement.variant == "channels last" else torch.contiguous_format
    model = model.to(device, dtype).to(memory_format=layout).eval()
    return lambda codes: model.decode_code(
        codes.flatten(), (codes.shape[0], config.codebook_dim, codes.shape[1], codes.shape[2])
    )
