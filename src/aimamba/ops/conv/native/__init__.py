"""C++ kernel of the 3 x 3 convolution."""
