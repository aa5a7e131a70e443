"""The closed form: a linear system from an algorithm's round, and its state transition; or its integration."""

from ntkp2p.dynamics.adjoint import propagate
from ntkp2p.dynamics.delay import (
    CharacteristicRoots,
    characteristic_roots,
    delay_margin,
    delay_margin_in_rounds,
    delay_matrices,
    delayed_radius,
    sufficient_delay,
)
from ntkp2p.dynamics.nonlinear import Integration, integrate
from ntkp2p.dynamics.solve import Solution, solve
from ntkp2p.dynamics.spectrum import Spectrum, spectrum
from ntkp2p.dynamics.steady_state import NoSteadyStateError, steady_state
from ntkp2p.dynamics.system import LinearSystem, linear_system
from ntkp2p.dynamics.transition import Transition, transition

__all__ = [
    "CharacteristicRoots",
    "Integration",
    "LinearSystem",
    "NoSteadyStateError",
    "Solution",
    "Spectrum",
    "Transition",
    "characteristic_roots",
    "delay_margin",
    "delay_margin_in_rounds",
    "delay_matrices",
    "delayed_radius",
    "integrate",
    "linear_system",
    "propagate",
    "solve",
    "spectrum",
    "steady_state",
    "sufficient_delay",
    "transition",
]
