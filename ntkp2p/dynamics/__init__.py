"""The closed form: a linear system from an algorithm's round, and its state transition."""

from ntkp2p.dynamics.predict import predict, predictions
from ntkp2p.dynamics.system import LinearSystem, linear_system
from ntkp2p.dynamics.transition import Solution, Transition, solve, transition

__all__ = [
    "LinearSystem",
    "Solution",
    "Transition",
    "linear_system",
    "predict",
    "predictions",
    "solve",
    "transition",
]
