"""Convolutions: causal ones over tokens, and 3 x 3 ones over images with Winograd's algorithm."""
