"""Checkpoints on disk and on the hub: finding them, reading their tensors, translating official layouts."""
