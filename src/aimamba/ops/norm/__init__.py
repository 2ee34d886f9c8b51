"""Root-mean-square norms (plain, gated and modulated), and the group norm of images."""
