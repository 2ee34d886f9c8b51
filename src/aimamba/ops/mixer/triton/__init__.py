"""The decoding step of a mixer as Triton kernels."""
