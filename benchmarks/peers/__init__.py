"""Adapters for other implementations, imported from a checkout or a package that the user names.

Weights are random and have the published sizes; speed does not depend on their values. Where a peer needs kernels that
this machine cannot run, they are replaced by the peer's own reference functions, the fastest if there are several.
"""

from importlib import import_module

from benchmarks.measurement import Measurement, UnavailableError
from benchmarks.subject import Subject

PEERS = {
    "official": "benchmarks.peers.official",
    "llamagen": "benchmarks.peers.llamagen",
    "transformers": "benchmarks.peers.transformers_mamba2",
}
WITHOUT_PATH = ("transformers",)  # installed packages


def build_peer(measurement: Measurement) -> Subject:
    """Import the peer and build its model.

    Raises:
        UnavailableError: The peer cannot be imported, or has no such size.
    """
    try:
        return import_module(PEERS[measurement.subject]).build(measurement, dict(measurement.paths))
    except ImportError as error:
        raise UnavailableError(f"peer {measurement.subject!r} cannot be imported: {error}") from error
