"""Graphs, mixing matrices, schedules, and their checks.

A mixing matrix is a plain float64 array in which **row q receives**: x_q ← Σ_r W[q, r] x_r.
"""

from ntkp2p.base.reports import Verdict
from ntkp2p.topology import graphs, schedules
from ntkp2p.topology.check import MixingReport, check_mixing, validate_mixing
from ntkp2p.topology.joint import ScheduleReport
from ntkp2p.topology.mixing import Mixing
from ntkp2p.topology.reading import load_mixing
from ntkp2p.topology.schedules import Schedule
from ntkp2p.topology.weights import best_constant, fastest_mixing, lazy, max_degree, metropolis, push_weights

__all__ = [
    "Mixing",
    "MixingReport",
    "Schedule",
    "ScheduleReport",
    "Verdict",
    "best_constant",
    "check_mixing",
    "fastest_mixing",
    "graphs",
    "lazy",
    "load_mixing",
    "max_degree",
    "metropolis",
    "push_weights",
    "schedules",
    "validate_mixing",
]
