"""Matrix products of decoding, which has few rows."""
