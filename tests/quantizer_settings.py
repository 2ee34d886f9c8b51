"""Settings of a small tokenizer with each quantiser, for ``make_vq``."""

SETTINGS = {
    "learned": {},
    "ema": {"quantizer": "ema"},
    "fsq": {"quantizer": "fsq", "levels": (4, 3, 5), "codebook_dim": 3, "codebook_size": 60},
    "lfq": {"quantizer": "lfq", "codebook_size": 16, "codebook_dim": 4},
    "gumbel": {"quantizer": "gumbel"},
}
KINDS = list(SETTINGS)
