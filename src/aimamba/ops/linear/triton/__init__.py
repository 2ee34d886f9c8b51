"""Matrix products with few rows as Triton kernels."""
