"""A run of many processes, which torchrun starts: how they share model and batches, their loop, their checkpoints."""
