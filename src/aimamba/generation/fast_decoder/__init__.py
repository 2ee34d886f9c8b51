"""A faster version of the tokenizer's decoder, for inference only. ``FastDecoder`` chooses how to compute it."""

from aimamba.generation.fast_decoder.decoder import Decoded, FastDecoder, check_finite

__all__ = ["Decoded", "FastDecoder", "check_finite"]
