"""Matrix products for decoding, which has few rows."""
