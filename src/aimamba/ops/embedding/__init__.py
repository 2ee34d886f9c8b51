"""The input of the first block."""
