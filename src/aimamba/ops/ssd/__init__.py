"""The state-space duality (SSD) operator of Mamba-2, in several forms with one signature.

``reference`` defines it, ``chunked`` computes it in parallel, ``autograd`` adds a backward pass that keeps little,
``triton`` holds the kernels for CUDA, and ``dispatch`` chooses.
"""
