"""Kernels for CUDA devices. Importing a module here imports Triton, so nothing does until a model decodes on one."""
