"""Frozen networks: Inception v3, EfficientNet-Lite0, perceptual distances built on them, and a sentence encoder."""
