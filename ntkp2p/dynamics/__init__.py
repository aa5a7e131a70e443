"""The closed form: a linear system from an algorithm's round, and its state transition."""

from ntkp2p.dynamics.stability import Spectrum, spectrum
from ntkp2p.dynamics.system import LinearSystem, linear_system
from ntkp2p.dynamics.transition import Solution, Transition, solve, transition

__all__ = [
    "LinearSystem",
    "Solution",
    "Spectrum",
    "Transition",
    "linear_system",
    "solve",
    "spectrum",
    "transition",
]
