"""The tokenizer's decoder, prepared for inference."""

from aimamba.generation.fast_decoder.decoder import FastDecoder

__all__ = ["FastDecoder"]
