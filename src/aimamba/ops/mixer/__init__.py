"""The part of a Mamba-2 mixer between its two projections: whole sequences and single decoding steps."""
