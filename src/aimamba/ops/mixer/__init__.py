"""The middle of a Mamba-2 mixer, between its two projections: whole sequences and single steps."""
