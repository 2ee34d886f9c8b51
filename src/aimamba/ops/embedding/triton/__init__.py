"""The input of the first block as a Triton kernel. Importing a module here imports Triton."""
