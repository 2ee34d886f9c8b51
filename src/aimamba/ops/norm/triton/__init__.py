"""The norm between two blocks as a Triton kernel. Importing a module here imports Triton."""
