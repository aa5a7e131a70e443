"""The closed form: a linear system from an algorithm's round, and its state transition; or its integration."""

from ntkp2p.dynamics.gradient import propagate
from ntkp2p.dynamics.integrate import Integration, integrate
from ntkp2p.dynamics.stability import Spectrum, spectrum
from ntkp2p.dynamics.steady import NoSteadyStateError, steady_state
from ntkp2p.dynamics.system import LinearSystem, linear_system
from ntkp2p.dynamics.transition import Solution, Transition, solve, transition

__all__ = [
    "Integration",
    "LinearSystem",
    "NoSteadyStateError",
    "Solution",
    "Spectrum",
    "Transition",
    "integrate",
    "linear_system",
    "propagate",
    "solve",
    "spectrum",
    "steady_state",
    "transition",
]
