"""Other people's code, from a checkout or a package that the user names; nothing of it is kept here.

Weights are random and of the published sizes: speed does not depend on them. Where a peer needs kernels that this
machine cannot run, its own reference functions take their place; where several would do, the fastest was chosen.
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
        UnavailableError: It cannot be imported, or has no such size.
    """
    try:
        return import_module(PEERS[measurement.subject]).build(measurement, dict(measurement.paths))
    except ImportError as error:
        raise UnavailableError(f"peer {measurement.subject!r} cannot be imported: {error}") from error
