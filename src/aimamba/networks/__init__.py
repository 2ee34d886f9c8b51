"""Frozen feature networks: Inception v3, EfficientNet-Lite0, and the perceptual distances built on them."""
