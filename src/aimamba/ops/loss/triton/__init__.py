"""The cross entropy of logits as a Triton kernel. Importing a module here imports Triton."""
