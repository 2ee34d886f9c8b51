"""Decoding on the CPU by a kernel in C++ that is compiled when it is first used."""
