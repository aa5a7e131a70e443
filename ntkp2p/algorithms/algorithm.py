"""What an algorithm is: one round of all agents, in terms of the verbs that it is handed."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from ntkp2p.algorithms.compression import Compressor, is_compressor
from ntkp2p.base.arrays import namespace
from ntkp2p.base.checks import is_number
from ntkp2p.base.errors import InputError


class _Gradients(Protocol):
    def __call__(self, x: Float[Array, "Q d"], /, *, when: Any = True) -> Float[Array, "Q d"]: ...


class _Compression(Protocol):
    def __call__(
        self, x: Float[Array, "Q d"], by: Compressor, /, *, everything: Any = False
    ) -> Float[Array, "Q d"]: ...


class _Mixing(Protocol):
    def __call__(self, x: Float[Array, "Q d"], /) -> Float[Array, "Q d"]: ...


class _Average(Protocol):
    def __call__(self, x: Float[Array, "Q d"], /, *, when: Any = True) -> Float[Array, "Q d"]: ...


def _lossless(x: Float[Array, "Q d"], by: Compressor, /, *, everything: Any = True) -> Float[Array, "Q d"]:
    return x


def _mean(x: Float[Any, "Q d"], /, *, when: Any = True) -> Float[Any, "Q d"]:
    xp = namespace(x, when)
    return xp.where(when, xp.broadcast_to(xp.mean(x, axis=0), x.shape), x)


class World(NamedTuple):
    """The verbs through which a round touches the world.

    All take and return `x` of shape (Q, d): row q is how far agent q's model has moved from the start θ₀ that all
    agents share. Training hands out the gradients of real networks at θ₀ + x (d = P parameters), prediction those of
    the linearised networks (d coordinates).

    Attributes
    ----------
    mix
        Neighbours' weighted sums, W x.
    grad
        Every agent's gradient of its own local loss, at its own row; `grad(x, when=...)` is 0 in rounds that take none.
    own
        What of W x needs no message: every agent's own row times its self-weight, diag(W) x.
    compress
        `compress(x, compressor)`: what a lossy link lets through of x, layer by layer; all of it in rounds where
        `everything=...` holds, and by default. Mix what it returns, as it is, and the message counts as compressed.
    average
        All agents' mean in every row, in rounds `when=...` holds, and x itself in others: an exchange among all.
    finished, begins
        Whether an agent ends a computation in this round, and begins one: True where all do so in every round, (Q, 1)
        for asynchronous agents. There `grad` is 0 for an agent that has not finished.

    Examples
    --------
    Two agents that average, and whose gradients are those of ‖x − y_q‖²/2:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> W = np.array([[0.5, 0.5], [0.5, 0.5]])
    >>> y = np.array([[0.0], [1.0]])
    >>> world = p2p.World(mix=lambda x: W @ x, grad=lambda x: x - y, own=lambda x: x / 2)
    >>> world.mix(np.array([[1.0], [3.0]])).ravel()
    array([2., 2.])
    >>> world.grad(np.array([[1.0], [3.0]])).ravel()
    array([1., 2.])
    """

    mix: _Mixing
    grad: _Gradients
    own: _Mixing
    compress: _Compression = _lossless
    average: _Average = _mean
    finished: Any = True
    begins: Any = True


class Algorithm(eqx.Module):
    """A peer-to-peer algorithm: a frozen record of its constants, and one pure `round`.

    Whoever writes one defines `round`; training, prediction and plots follow. The state is any pytree of
    arrays; by default it is `x` itself. Its leaves of a shape that depends on d move with the models. The others,
    such as push-sum's weights or a count of rounds, must not depend on the models: they are exogenous, and a prediction
    knows them beforehand.

    Parameters
    ----------
    step_size
        η > 0, the length of one round in flow time: t = η k.

    Raises
    ------
    ValueError
        If the step size is not a finite positive number.

    Examples
    --------
    Gradient descent of agents that do not talk at all:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> class Alone(p2p.Algorithm):
    ...     def round(self, x, world, /):
    ...         return x - self.step_size * world.grad(x)
    >>> world = p2p.World(mix=lambda x: x, grad=lambda x: 2 * x, own=lambda x: x)
    >>> Alone(step_size=0.25).round(np.array([[1.0], [4.0]]), world).ravel()
    array([0.5, 2. ])
    """

    # A whole number, as TOML may have it, would be no parameter of the linear system.
    step_size: Any = eqx.field(converter=lambda value: float(value) if type(value) is int else value)

    #: What the rows and columns of the mixing matrix must sum to: "row", "column" or "doubly" (stochastic).
    stochastic: ClassVar[Literal["row", "column", "doubly"]] = "row"
    #: Why the mixing must not change over time, and what to take instead; empty where it may.
    static: ClassVar[str] = ""
    #: Why agents must not be asynchronous, and what to use instead; empty if they may be.
    synchronous: ClassVar[str] = ""

    def __check_init__(self):
        value = self.step_size
        # What is differentiated was checked as a number.
        if not (isinstance(value, Tracer) or (is_number(value) and float(value) > 0)):
            raise InputError(
                f"step_size must be a finite positive number, found {value!r}: "
                f"for instance {type(self).__name__}(step_size=0.1)"
            )

    def __repr__(self) -> str:
        return eqx.tree_pformat(self, width=10_000)  # in one line

    @property
    def name(self) -> str:
        """What results and messages call it."""
        return type(self).__name__

    @property
    def nonlinear(self) -> str:
        """Why its rounds of linear models are not affine, so that it can be trained only; empty where they are."""
        return ""

    @property
    def has_flow(self) -> bool:
        """Whether rounds s ↦ M s + b discretise the gradient flow ds/dt = (M − I) s/η + b/η.

        By default where the models are the state, so that a subclass defines neither `init` nor `model`: what else an
        algorithm keeps, such as a velocity, follows rounds.
        """
        kind = type(self)
        return kind.init is Algorithm.init and kind.model is Algorithm.model

    @abstractmethod
    def round(self, state: PyTree, world: World, /) -> PyTree:
        """Advance all agents by one round, and return the next state.

        Parameters
        ----------
        state
            As `init` makes it.
        world
            What the round may use of the world.
        """

    def init(self, x: Float[Any, "Q d"], /) -> PyTree:
        """The state in which agents with models `x`, shape (Q, d), begin: `x` is 0, the common start."""
        return x

    def model(self, state: PyTree, /) -> Float[Any, "Q d"]:
        """Every agent's model in a `state`, as it is evaluated, shape (Q, d)."""
        return state

    def is_symmetric(self, mixing: np.ndarray, /) -> bool:
        """Whether the round of linear models over a matrix `mixing` is a symmetric map.

        It is declared, for it selects Lanczos over Arnoldi.
        """
        return False

    def sufficient_step_size(self, mixing: np.ndarray, curvature: float, /) -> float:
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
            As for `sufficient_step_size`.
        """
        return float("nan")


def without_constants(algorithm: Algorithm, /) -> tuple[Any, Algorithm]:
    """The real constants of an algorithm, and what is left of it; compressors keep theirs.

    Those of compressors say how many entries are sent, so that they decide on shapes.
    """
    spec = jax.tree.map(
        lambda part: not is_compressor(part) and eqx.is_inexact_array_like(part), algorithm, is_leaf=is_compressor
    )
    return eqx.partition(algorithm, spec)
