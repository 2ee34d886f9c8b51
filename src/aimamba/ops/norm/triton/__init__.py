"""The norms of models as Triton kernels. Importing a module here imports Triton."""
