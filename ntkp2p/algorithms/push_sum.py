r"""Push-sum: averaging over directed graphs with column-stochastic weights.

With P column-stochastic, agent q stores a numerator x_q and a weight u_q, initially 1, and its model is their quotient.
A directed graph may accumulate Σ x at some agents; it accumulates Σ u there as well, and the quotient corrects this:

    z = x / u,    x⁺ = P (x − η g(z)),    u⁺ = P u.

P preserves Σ x and Σ u. With Nesterov momentum μ, the gradient step is along g + μ m⁺, m⁺ = μ m + g.

References
----------
Nedić and Olshevsky, "Stochastic gradient-push for strongly convex functions on time-varying directed graphs", IEEE TAC
2016.
Assran, Loizou, Ballas and Rabbat, "Stochastic gradient push for distributed deep learning", ICML 2019.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from ntkp2p.algorithms.algorithm import Algorithm
from ntkp2p.base.arrays import namespace
from ntkp2p.base.checks import must_be_share


class _PushSumState(NamedTuple):
    """Numerators, weights, and the velocity m; None without momentum."""

    x: Float[Array, "Q d"]
    weights: Float[Array, "Q 1"]
    velocity: Float[Array, "Q d"] | None


class PushSum(Algorithm):
    """Stochastic gradient push: gradients are evaluated at the de-biased models z = x/u.

    Parameters
    ----------
    step_size
        η > 0.
    momentum
        μ of Nesterov momentum, 0 < μ < 1, with one velocity per agent. None: no momentum.

    Raises
    ------
    ValueError
        If a constant is out of its range.

    Notes
    -----
    At a fixed point the agents differ by O(η), as for ATC. For doubly stochastic P the rounds are those of ATC.

    Examples
    --------
    Two rounds without gradients. The rows of P do not sum to one, but the models, which are quotients, approach the
    mean of 1 and 3:

    >>> import jax.numpy as jnp
    >>> import ntkp2p as p2p
    >>> P = jnp.array([[0.75, 0.5], [0.25, 0.5]])
    >>> world = p2p.World(mix=lambda x: P @ x, grad=lambda x: 0 * x, own=lambda x: x)
    >>> algorithm = p2p.PushSum(step_size=0.1)
    >>> state = algorithm.init(jnp.array([[1.0], [3.0]]))
    >>> for _ in range(2):
    ...     state = algorithm.round(state, world)
    >>> [round(float(z), 3) for z in algorithm.model(state).ravel()]
    [1.952, 2.091]
    >>> round(float(state.weights.sum()), 6)
    2.0
    """

    momentum: Any = None
    stochastic = "column"

    def __check_init__(self):
        must_be_momentum(self.momentum)

    @property
    def has_flow(self):
        # The weights are only defined in rounds.
        return False

    def init(self, x, /):
        return _PushSumState(x, namespace(x).ones((len(x), 1), x.dtype), None if self.momentum is None else 0 * x)

    def model(self, state, /):
        return state.x / state.weights

    def round(self, state, world, /):
        step, velocity = nesterov(world.grad(self.model(state)), self.momentum, state.velocity)
        return _PushSumState(world.mix(state.x - self.step_size * step), world.mix(state.weights), velocity)


def nesterov(
    gradient: Float[Any, "Q d"], momentum: Any, velocity: Float[Any, "Q d"] | None, /
) -> tuple[Float[Any, "Q d"], Float[Any, "Q d"] | None]:
    """Return the step direction with Nesterov momentum, g + μ m⁺ with m⁺ = μ m + g, and m⁺; without momentum, g."""
    if velocity is None:
        return gradient, None
    velocity = momentum * velocity + gradient
    return gradient + momentum * velocity, velocity


def must_be_momentum(value: Any, /) -> None:
    """Raise `InputError` unless `value` is None or a number above 0 and below 1."""
    if value is not None:
        must_be_share("momentum", value, "0.9 is usual, None for no momentum")
