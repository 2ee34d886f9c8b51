"""Tensor functions that know nothing of models: they take tensors and return tensors.

Each folder holds one operation:

=============  =====================================================================================================
``ssd``        the state-space duality operator of Mamba-2
``mixer``      the part of a Mamba-2 mixer between its two projections: whole sequences and decoding steps
``conv``       the causal convolution over tokens, and 3 x 3 convolutions over images
``linear``     matrix products with few rows, for decoding
``norm``       root-mean-square norms
``sampling``   from logits to tokens
``native``     compiling and loading C++ kernels, and the threads they run in
=============  =====================================================================================================

Within a folder the plain modules are functions of their arguments, written with PyTorch's operations. The exceptions
are named where they stand: ``linear.linear`` and ``norm.rms`` keep a few small constant tensors between calls. Kernels
have the signatures of the plain functions and live beside them: ``native/`` for C++ on the CPU, which is compiled on
first use, and ``triton/`` for CUDA, whose modules import Triton. Everything else that depends on more than the
arguments is in ``dispatch``: it reads the environment, tries a kernel, logs, remembers the outcome and chooses. Every
``unsupported(...)`` returns the reason why a kernel cannot be used, or None.
"""
