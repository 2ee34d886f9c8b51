"""Modulated norms as Triton kernels."""
