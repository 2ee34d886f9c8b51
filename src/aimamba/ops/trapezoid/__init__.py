"""The recurrence of Mamba-3, in several forms with one signature.

``reference`` defines it and advances single tokens; ``chunked`` computes it in parallel.
"""
