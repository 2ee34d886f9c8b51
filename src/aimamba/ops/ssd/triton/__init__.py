"""The chunked SSD as Triton kernels, forward and backward."""
