"""The causal convolution as Triton kernels. Importing a module here imports Triton."""
