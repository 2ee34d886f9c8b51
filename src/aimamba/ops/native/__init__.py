"""Kernels in C++ for the CPU, compiled when they are first used."""
