"""Frozen feature networks: Inception, EfficientNet-Lite0, and perceptual distances."""
