"""What the C++ kernels share: compiling them on first use, PyTorch's threads, and headers.

The modules here look for a compiler, read and write the cache folder, log, and keep what they loaded.
"""
