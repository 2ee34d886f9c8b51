"""Root-mean-square norms: plain, gated and modulated."""
