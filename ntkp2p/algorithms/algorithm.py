"""What an algorithm is: one round of all agents, in terms of the verbs that it is handed."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree


class World(NamedTuple):
    """The verbs through which a round touches the world.

    Both take and return `x` of shape (Q, d): row q is the model of agent q as a vector. Training hands out the
    gradients of real networks (d = P parameters), prediction those of the linearised networks (d coordinates).

    Attributes
    ----------
    mix
        Neighbours' weighted sums, W x.
    grad
        Every agent's gradient of its own local loss, at its own row.
    own
        What of W x needs no message: every agent's own row times its self-weight, diag(W) x.
    """

    mix: Callable[[Float[Array, "Q d"]], Float[Array, "Q d"]]
    grad: Callable[[Float[Array, "Q d"]], Float[Array, "Q d"]]
    own: Callable[[Float[Array, "Q d"]], Float[Array, "Q d"]]


class Algorithm(eqx.Module):
    """A peer-to-peer algorithm: a frozen record of its constants, and one pure `round`.

    Whoever writes one defines `round`; training, prediction and plots follow. The state is any pytree of
    arrays; by default it is `x` itself.

    Parameters
    ----------
    step_size
        η > 0, the length of one round in flow time: t = η k.

    Raises
    ------
    ValueError
        If the step size is not a finite positive number.
    """

    step_size: Any

    #: What the rows and columns of the mixing matrix must sum to: "row", "column" or "doubly" (stochastic).
    stochastic: ClassVar[Literal["row", "column", "doubly"]] = "row"

    def __check_init__(self):
        value = self.step_size
        if isinstance(value, Tracer):  # differentiated: it was checked as a number
            return
        number = isinstance(value, int | float | np.number | jax.Array) and not isinstance(value, bool)
        if not (number and np.ndim(value) == 0 and np.isrealobj(value) and np.isfinite(value) and float(value) > 0):
            raise ValueError(
                f"step_size must be a finite positive number, found {value!r}: "
                f"for instance {type(self).__name__}(step_size=0.1)"
            )

    @property
    def name(self) -> str:
        """What results and messages call it."""
        return type(self).__name__

    @property
    def has_flow(self) -> bool:
        """Whether rounds s ↦ M s + b discretise the gradient flow ds/dt = (M − I) s/η + b/η."""
        return True

    @abstractmethod
    def round(self, state: PyTree, world: World, /) -> PyTree:
        """Advance all agents by one round."""

    def init(self, x: Float[Array, "Q d"], /) -> PyTree:
        """The state in which agents with models `x` begin."""
        return x

    def model(self, state: PyTree, /) -> Float[Array, "Q d"]:
        """Every agent's model in this state, as it is evaluated."""
        return state

    def is_symmetric(self, mixing: np.ndarray, /) -> bool:
        """Whether the round of a linear model is a symmetric map: declared, for it selects Lanczos over Arnoldi."""
        return False

    def stable_step_size(self, mixing: np.ndarray, curvature: float, /) -> float:
        """The textbook's step size below which linear rounds are stable; nan where there is none.

        Parameters
        ----------
        mixing
            W, shape (Q, Q).
        curvature
            The largest eigenvalue of any agent's Hessian J_qᵀ J_q / N_q.
        """
        return float("nan")

    def growth(self, mixing: np.ndarray, curvature: float, /) -> float:
        """A bound of ‖M^k‖₂ over all k for the rounds M of linear models, and of their flow; nan where none is known.

        It turns the residual of an approximate solution into a bound of its error.

        Parameters
        ----------
        mixing, curvature
            As for `stable_step_size`.
        """
        return float("nan")
