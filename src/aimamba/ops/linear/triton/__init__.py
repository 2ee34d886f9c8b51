"""Matrix products with few rows as Triton kernels. Importing a module here imports Triton."""
