"""The gated delta rule of Gated DeltaNet, in several forms with one signature.

``reference`` defines it and advances single tokens; ``chunked`` computes it in parallel.
"""
