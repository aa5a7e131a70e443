r"""Local SGD: an update is several steps by oneself, and its gradients are as old as the computation is long.

Agent q begins a computation at its model y_q, takes L steps of its own from there, and adds what they have moved to
the model that it has by then, which others have mixed with meanwhile:

    v_0 = y_q,  v_{l+1} = v_l − η g_q(v_l),    u_q = v_L − y_q,    x_q ← x_q + u_q,    y_q ← x_q.

Where all agents finish in every round, x⁺ = W (x + u(x)): with L = 1 these are ATC's rounds.

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

#: What a new message counts for in the running mean of squared distances.
FORGETTING = 0.1


class _State(NamedTuple):
    """Models, where computations began, updates not yet applied (oldest first), velocities, and mean variances."""

    x: Float[Array, "Q d"]
    begun: Float[Array, "Q d"]
    waiting: Float[Array, "Q delay d"]
    velocity: Float[Array, "Q d"] | None
    variance: Float[Array, "Q 1"] | None


class LocalSGD(Algorithm):
    """Local SGD with updates from the model as it was when the computation began.

    Over `AsynchronousGossip`, or events drawn of it, every agent begins and ends computations by its own clock; over
    other mixing all do so in every round.

    Parameters
    ----------
    step_size
        η > 0.
    steps
        L ≥ 1, the local steps of an update.
    momentum
        β of the heavy ball, 0 < β < 1: v_q ← β v_q + u_q is applied in place of u_q. None for none.
    delay
        An update is applied when so many further updates of the agent have been computed.
    variance_scale
        σ² > 0: a step is η / (1 + V_q/σ²) long, where V_q is a running mean of Σ_r w_r ‖x_r − x_q‖² over what
        neighbours sent, w_r their weights. None for steps of one length. It can be trained only.

    Raises
    ------
    ValueError
        If a constant is out of its range.

    Notes
    -----
    A public summary of Mitra and Ulukus' work describes momentum, delayed updates, and steps by the variance of what
    is received. The paper's abstract has none of these: they are our reading of that summary.

    Examples
    --------
    Three local steps on x²/2 of a lone agent take it to (1 − η)³ x:

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
            raise InputError(f"variance_scale must be a finite positive number, found {scale!r}: None is without")

    @property
    def nonlinear(self):
        return "" if self.variance_scale is None else "its step sizes depend on the models (variance_scale)"

    @property
    def has_flow(self):
        # An update that moves by what it was late or by a velocity is no step of the gradient flow.
        return self.momentum is None and not self.delay

    def init(self, x, /):
        waiting = namespace(x).broadcast_to(0 * x[:, None], (len(x), self.delay, x.shape[1]))
        velocity = None if self.momentum is None else 0 * x
        return _State(x, x, waiting, velocity, None if self.variance_scale is None else 0 * x[:, :1])

    def model(self, state, /):
        return state.x

    def round(self, state, world, /):
        done, step, v = world.finished, self._step(state), state.begun
        for _ in range(self.steps):
            v = v - step * world.grad(v)
        xp = namespace(done, v, state.x, state.waiting, self.momentum)
        line = xp.concatenate([state.waiting, (v - state.begun)[:, None]], axis=1)
        waiting = xp.where(xp.asarray(done)[..., None], line[:, 1:], state.waiting)
        update, velocity = line[:, 0], None
        if state.velocity is not None:
            velocity = xp.where(done, self.momentum * state.velocity + update, state.velocity)
            update = velocity
        moved = xp.where(done, state.x + update, state.x)
        x = world.mix(moved)
        return _State(x, xp.where(world.begins, x, state.begun), waiting, velocity, self._heard(state, world, moved, x))

    def _step(self, state):
        return self.step_size if state.variance is None else self.step_size / (1 + state.variance / self.variance_scale)

    def _heard(self, state, world, x, mixed):
        """The running mean of Σ_r w_r ‖x_r − x_q‖²; it stays where nothing is heard."""
        if state.variance is None:
            return None
        square = jnp.sum(x**2, axis=1, keepdims=True)
        taken = 1 - world.own(jnp.ones_like(square))
        spread = world.mix(square) - 2 * jnp.sum(x * mixed, axis=1, keepdims=True) + square
        variance = jnp.maximum(spread, 0) / jnp.where(taken > 0, taken, 1)
        return jnp.where(taken > 0, state.variance + FORGETTING * (variance - state.variance), state.variance)
