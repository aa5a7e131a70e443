"""Who talks to whom, how strongly, and when: graphs, mixing matrices, schedules of them, and their check at the door.

A mixing matrix is a plain float64 array in which **row q receives**: x_q ← Σ_r W[q, r] x_r.
"""

from ntkp2p.topology import graphs, schedules
from ntkp2p.topology.check import MixingReport, check_mixing, validate_mixing
from ntkp2p.topology.schedules import Schedule
from ntkp2p.topology.weights import fastest_mixing, lazy, load_mixing, max_degree, metropolis

__all__ = [
    "MixingReport",
    "Schedule",
    "check_mixing",
    "fastest_mixing",
    "graphs",
    "lazy",
    "load_mixing",
    "max_degree",
    "metropolis",
    "schedules",
    "validate_mixing",
]
