r"""Local SGD: an update consists of several local steps, and its gradients are as old as the computation is long.

Agent q starts a computation at its model y_q and takes L local steps from there. It then adds their sum u_q to its
current model x_q, which may have been mixed with other models in the meantime:

    v_0 = y_q,  v_{l+1} = v_l − η g_q(v_l),    u_q = v_L − y_q,    x_q ← x_q + u_q,    y_q ← x_q.

If all agents finish in every round, x⁺ = W (x + u(x)); for L = 1 this is ATC.

References
----------
Stich, "Local SGD converges fast and communicates little", ICLR 2019.
Lian, Zhang, Zhang and Liu, "Asynchronous decentralized parallel stochastic gradient descent", ICML 2018.
Mitra and Ulukus, "Scale-robust timely asynchronous decentralized learning", arXiv 2404.19749.
Polyak, "Some methods of speeding up the convergence of iteration methods", 1964 (heavy ball).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkp2p.algorithms.algorithm import Algorithm
from ntkp2p.algorithms.push_sum import must_be_momentum
from ntkp2p.base.arrays import namespace
from ntkp2p.base.checks import is_number, whole_rounds
from ntkp2p.base.errors import InputError

#: The weight of a new message in the running mean of squared distances.
FORGETTING = 0.1


class _State(NamedTuple):
    """Models, models at the start of computations, pending updates (oldest first), velocities, and mean variances."""

    x: Float[Array, "Q d"]
    begun: Float[Array, "Q d"]
    waiting: Float[Array, "Q delay d"]
    velocity: Float[Array, "Q d"] | None
    variance: Float[Array, "Q 1"] | None


class LocalSGD(Algorithm):
    """Local SGD with updates computed from the model at the start of the computation.

    With `AsynchronousGossip`, or with simulated `Events`, every agent starts and ends computations by its own clock;
    with other mixing, all agents do so in every round.

    Parameters
    ----------
    step_size
        η > 0.
    steps
        L ≥ 1, the number of local steps in an update.
    momentum
        β of heavy-ball momentum, 0 < β < 1: v_q ← β v_q + u_q is applied instead of u_q. None: no momentum.
    delay
        The number of further updates of the agent to compute before an update is applied.
    variance_scale
        σ² > 0: the step size is η / (1 + V_q/σ²), where V_q is a running mean of Σ_r w_r ‖x_r − x_q‖² over the
        received models x_r with weights w_r. Such an algorithm can be trained, but not predicted. None: a constant
        step size.

    Raises
    ------
    ValueError
        If a constant is out of its range.

    Notes
    -----
    A public summary of Mitra and Ulukus' work describes momentum, delayed updates, and step sizes that depend on the
    variance of received models. The paper's abstract mentions none of these: they are our reading of that summary.

    Examples
    --------
    Three local steps of a single agent on x²/2 give (1 − η)³ x:

    >>> import jax.numpy as jnp
    >>> import ntkp2p as p2p
    >>> world = p2p.World(mix=lambda x: x, grad=lambda x: x, own=lambda x: x)
    >>> algorithm = p2p.LocalSGD(step_size=0.5, steps=3)
    >>> state = algorithm.round(algorithm.init(jnp.ones((1, 1))), world)
    >>> algorithm.model(state).tolist()
    [[0.125]]
    """

    steps: int = eqx.field(static=True)
    momentum: Any
    delay: int = eqx.field(static=True)
    variance_scale: Any

    def __init__(
        self, step_size: Any, steps: Any = 1, momentum: Any = None, delay: Any = 0, variance_scale: Any = None
    ):
        self.step_size, self.momentum, self.variance_scale = step_size, momentum, variance_scale
        self.steps, self.delay = whole_rounds("steps", steps, least=1), whole_rounds("delay", delay)
        must_be_momentum(momentum)
        scale = variance_scale
        if scale is not None and not (is_number(scale) and scale > 0):
            raise InputError(
                f"variance_scale must be a finite positive number, found {scale!r}: None for a constant step size"
            )

    @property
    def nonlinear(self):
        return "" if self.variance_scale is None else "its step sizes depend on the models (variance_scale)"

    @property
    def has_flow(self):
        # A delayed update, or a velocity, is not a step of the gradient flow.
        return self.momentum is None and not self.delay

    def init(self, x, /):
        waiting = namespace(x).broadcast_to(0 * x[:, None], (len(x), self.delay, x.shape[1]))
        velocity = None if self.momentum is None else 0 * x
        return _State(x, x, waiting, velocity, None if self.variance_scale is None else 0 * x[:, :1])

    def model(self, state, /):
        return state.x

    def round(self, state, world, /):
        finished, step_size, v = world.finished, self._step_size(state), state.begun
        for _ in range(self.steps):
            v = v - step_size * world.grad(v)
        xp = namespace(finished, v, state.x, state.waiting, self.momentum)
        line = xp.concatenate([state.waiting, (v - state.begun)[:, None]], axis=1)
        waiting = xp.where(xp.asarray(finished)[..., None], line[:, 1:], state.waiting)
        update, velocity = line[:, 0], None
        if state.velocity is not None:
            velocity = xp.where(finished, self.momentum * state.velocity + update, state.velocity)
            update = velocity
        updated = xp.where(finished, state.x + update, state.x)
        x = world.mix(updated)
        variance = self._mean_variance(state, world, updated, x)
        return _State(x, xp.where(world.begins, x, state.begun), waiting, velocity, variance)

    def _step_size(self, state):
        return self.step_size if state.variance is None else self.step_size / (1 + state.variance / self.variance_scale)

    def _mean_variance(self, state, world, x, mixed):
        """The running mean of Σ_r w_r ‖x_r − x_q‖²; it is unchanged if nothing is received."""
        if state.variance is None:
            return None
        square = jnp.sum(x**2, axis=1, keepdims=True)
        weight = 1 - world.own(jnp.ones_like(square))
        spread = world.mix(square) - 2 * jnp.sum(x * mixed, axis=1, keepdims=True) + square
        variance = jnp.maximum(spread, 0) / jnp.where(weight > 0, weight, 1)
        return jnp.where(weight > 0, state.variance + FORGETTING * (variance - state.variance), state.variance)
