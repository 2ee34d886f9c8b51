"""Guided sampling as Triton kernels."""
