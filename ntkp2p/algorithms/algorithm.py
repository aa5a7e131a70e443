"""The interface of an algorithm: one round of all agents, written with the operations of a `World`."""

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
    """The operations that a round may use.

    All of them take and return `x` of shape (Q, d): row q is the displacement of agent q's model from the common
    initialisation θ₀. In training, `grad` returns the gradients of the real networks at θ₀ + x (d = P parameters); in
    prediction, those of the linearised networks (d coordinates).

    Attributes
    ----------
    mix
        The weighted sums over neighbours, W x.
    grad
        The gradient of every agent's local loss at the agent's row; `grad(x, when=...)` is 0 where `when` is false.
    own
        The part of W x that needs no message, diag(W) x: every agent's row times its self-weight.
    compress
        `compress(x, compressor)`: the compressed values of x, layer by layer; x itself in rounds where
        `everything=...` is true, and by default. A message counts as compressed if its result is mixed unchanged.
    average
        The mean over all agents in every row in rounds where `when=...` is true, else x itself.
    finished, begins
        Whether an agent ends a computation in this round, and begins one: True if all agents do so in every round;
        shape (Q, 1) for asynchronous agents, for which `grad` is 0 until a computation is finished.

    Examples
    --------
    Two agents that average, with the local losses ‖x − y_q‖²/2:

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

    A subclass defines `round`; training, prediction and plots use it. The state is any pytree of arrays, by default
    `x` itself. Leaves whose shape depends on d depend on the models. The other leaves, such as push-sum's weights or
    a count of rounds, must not depend on the models: this model-independent state is known before the run.

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
    Gradient descent without communication:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> class Alone(p2p.Algorithm):
    ...     def round(self, x, world, /):
    ...         return x - self.step_size * world.grad(x)
    >>> world = p2p.World(mix=lambda x: x, grad=lambda x: 2 * x, own=lambda x: x)
    >>> Alone(step_size=0.25).round(np.array([[1.0], [4.0]]), world).ravel()
    array([0.5, 2. ])
    """

    # TOML may give an integer, which would not be a parameter of the linear system.
    step_size: Any = eqx.field(converter=lambda value: float(value) if type(value) is int else value)

    #: What the rows and columns of the mixing matrix must sum to: "row", "column" or "doubly" (stochastic).
    stochastic: ClassVar[Literal["row", "column", "doubly"]] = "row"
    #: Why the mixing must not change over time, and what to use instead; empty if it may.
    static: ClassVar[str] = ""
    #: Why agents must not be asynchronous, and what to use instead; empty if they may be.
    synchronous: ClassVar[str] = ""

    def __check_init__(self):
        value = self.step_size
        # A traced value was checked before, as a number.
        if not (isinstance(value, Tracer) or (is_number(value) and float(value) > 0)):
            raise InputError(
                f"step_size must be a finite positive number, found {value!r}: "
                f"for instance {type(self).__name__}(step_size=0.1)"
            )

    def __repr__(self) -> str:
        return eqx.tree_pformat(self, width=10_000)  # on one line

    @property
    def name(self) -> str:
        """The name in results and messages."""
        return type(self).__name__

    @property
    def nonlinear(self) -> str:
        """Why the rounds of linear models are not affine, so the algorithm can only be trained; empty if they are."""
        return ""

    @property
    def has_flow(self) -> bool:
        """Whether rounds s ↦ M s + b discretise the gradient flow ds/dt = (M − I) s/η + b/η.

        The default is true if the state is the model, that is, if a subclass defines neither `init` nor `model`. Other
        state, such as a velocity, follows rounds and not a flow.
        """
        kind = type(self)
        return kind.init is Algorithm.init and kind.model is Algorithm.model

    @abstractmethod
    def round(self, state: PyTree, world: World, /) -> PyTree:
        """Advance all agents by one round, and return the next state.

        Parameters
        ----------
        state
            The state, as returned by `init`.
        world
            The operations that the round may use.
        """

    def init(self, x: Float[Any, "Q d"], /) -> PyTree:
        """Return the initial state for models `x`, shape (Q, d), where x = 0 is the common initialisation."""
        return x

    def model(self, state: PyTree, /) -> Float[Any, "Q d"]:
        """Return every agent's model, shape (Q, d), in a `state`."""
        return state

    def is_symmetric(self, mixing: np.ndarray, /) -> bool:
        """Whether the round of linear models over a matrix `mixing` is a symmetric map.

        A symmetric map is solved by Lanczos instead of Arnoldi.
        """
        return False

    def sufficient_step_size(self, mixing: np.ndarray, curvature: float, /) -> float:
        """A step size below which linear rounds are stable, known from the literature; NaN if there is none.

        Parameters
        ----------
        mixing
            W, shape (Q, Q).
        curvature
            The largest eigenvalue of any agent's Hessian J_qᵀ J_q / N_q.
        """
        return float("nan")

    def growth(self, mixing: np.ndarray, curvature: float, /) -> float:
        """A bound on ‖M^k‖₂ over all k, for the rounds M of linear models and for their flow; NaN if none is known.

        With it, the residual of an approximate solution gives a bound on its error.

        Parameters
        ----------
        mixing, curvature
            As for `sufficient_step_size`.
        """
        return float("nan")


def without_constants(algorithm: Algorithm, /) -> tuple[Any, Algorithm]:
    """Split an algorithm into its real constants and the rest; compressors keep theirs.

    The constants of compressors determine the number of entries that are sent, and so the shapes of arrays.
    """
    spec = jax.tree.map(
        lambda part: not is_compressor(part) and eqx.is_inexact_array_like(part), algorithm, is_leaf=is_compressor
    )
    return eqx.partition(algorithm, spec)
