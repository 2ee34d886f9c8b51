"""The decoding step of a mixer as Triton kernels, in its state form and its dual form."""
