"""Speed of AiM beside its peers and beside what the machine allows: ``python -m benchmarks --help``.

Every measurement runs in a process of its own, see ``benchmarks.worker``; ``docs/speed.md`` defines every figure.
"""
