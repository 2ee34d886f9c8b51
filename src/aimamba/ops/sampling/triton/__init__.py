"""Guided sampling as a Triton kernel. Importing a module here imports Triton."""
