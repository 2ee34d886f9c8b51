"""The mixer as Triton kernels: all tokens at once, and a decoding step in its state form and its dual form."""
