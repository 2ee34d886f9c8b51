"""Checkpoints: find them on disk or on the hub, read their configs and tensors, translate the official layouts."""
