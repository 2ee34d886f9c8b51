"""Benchmarks of AiM, its peers and the machine's own limits: ``python -m benchmarks --help``.

Every measurement runs in its own process, see ``benchmarks.worker``; ``docs/speed.md`` defines every number.
"""
