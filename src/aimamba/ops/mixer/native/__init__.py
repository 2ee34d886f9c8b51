"""C++ kernels of a mixer: whole sequences with gradients, and the decoding step of a whole model."""
