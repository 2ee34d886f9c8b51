"""Tensor functions, independent of models: they take tensors and return tensors.

Each folder holds one operation:

=============  =====================================================================================================
``ssd``        the state-space duality operator of Mamba-2
``delta``      the gated delta rule of Gated DeltaNet
``trapezoid``  the recurrence of Mamba-3
``mixer``      the part of a Mamba-2 mixer between its projections: whole sequences and decoding steps
``conv``       the causal convolution over tokens, and 3 x 3 convolutions over images
``linear``     matrix products with few rows, for decoding
``norm``       root-mean-square norms
``sampling``   from logits to tokens
``native``     compiling and loading C++ kernels, and the threads they run in
=============  =====================================================================================================

Smaller ones are single modules: ``cache`` (caches of past tokens), ``quantize``, ``psnr`` and ``ssim``. What scans
share is in ``chunks`` (of tokens), ``backends`` (how one is named and tried on CUDA) and ``flash_linear_attention`` (an
extra).

Plain modules use PyTorch's operations, and their results depend only on the arguments. Two of them keep small constant
tensors between calls, to save time: ``linear.linear`` and ``norm.rms``. Kernels are beside the plain modules: in
``native/`` for the CPU, written in C++ and compiled on first use, and in ``triton/`` for CUDA, where every import
imports Triton. A ``dispatch`` module chooses between them: it may read the environment, try a kernel, log, and keep the
outcome. Every ``unsupported(...)`` returns the reason why a kernel cannot be used, or None.
"""
