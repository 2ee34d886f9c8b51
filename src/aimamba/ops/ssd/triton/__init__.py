"""The chunked SSD as Triton kernels, forward and backward. Importing a module here imports Triton."""
