r"""Sparse-Push: push-sum with compressed messages and error feedback, over directed graphs that may change.

Agent q stores a numerator x_q, a weight u_q (initially 1) and a memory e_q (initially 0) of the values not sent yet.
Its model is z_q = x_q/u_q, its displacement from the common initialisation. With P column-stochastic, a compressor C
and an averaging rate γ in (0, 1], one round is

    z = x / u,    x ← x − η g(z),    v = x + e,    q = C(v),    e⁺ = v − q,
    x⁺ = x + γ (P q − q),    u⁺ = u + γ (P u − u).

The exchange preserves Σ x and Σ u for every C. The weights are never compressed. C compresses each layer separately.

The public descriptions of these algorithms leave some details open. Our reading: x is the displacement from the common
initialisation θ₀, so no message contains values that all agents know, and incomplete messages do not scale θ₀.
**Dense start-up rounds** send all entries, and mix at the rate 1.

An entry that is sent every n-th round has accumulated n times its value, so γ should be about 1/n. Rates above 2/n can
make the models diverge; the prediction shows this only in the mean.

References
----------
Aketi, Singh and Rabaey, "Sparse-Push: communication- and energy-efficient decentralized distributed learning over
directed and time-varying graphs with non-IID datasets", arXiv 2102.05715.
Stich, Cordonnier and Jaggi, "Sparsified SGD with memory", NeurIPS 2018 (error feedback).
Koloskova, Stich and Jaggi, "Decentralized stochastic optimization and gossip algorithms with compressed communication",
ICML 2019 (CHOCO).
Aketi, Choudhary and Roy, "AdaGossip: adaptive consensus step-size for decentralized deep learning with communication
compression", 2024.
"""

from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, Integer

from ntkp2p.algorithms.algorithm import Algorithm
from ntkp2p.algorithms.compression import Compressor, must_be_compressor, with_error_feedback
from ntkp2p.algorithms.push_sum import must_be_momentum, nesterov
from ntkp2p.base.arrays import namespace
from ntkp2p.base.checks import must_be_share, whole_rounds

#: ε of AdaGossip, which avoids an infinite rate for an entry on which all agents have agreed so far.
SMALL = 1e-8


class _SparseState(NamedTuple):
    """The state: x, u and e of the module's docstring as `x`, `weights` and `memory`, and counters.

    dense : remaining dense rounds; phase : round within a cycle of skew compensation, else 0;
    velocity : m, with momentum; variance : v̂, with AdaGossip's rate.
    """

    x: Float[Array, "Q d"]
    weights: Float[Array, "Q 1"]
    memory: Float[Array, "Q d"]
    dense: Integer[Array, ""]
    phase: Integer[Array, ""]
    velocity: Float[Array, "Q d"] | None
    variance: Float[Array, "Q d"] | None


class SparsePush(Algorithm):
    """Push-sum SGD with compressed messages and error feedback.

    Parameters
    ----------
    step_size
        η > 0.
    compression
        C, for instance `TopK(0.01)` or `RandomK(0.01)`.
    averaging_rate
        γ, 0 < γ ≤ 1. The default is the share of the entries that is sent.
    dense_rounds
        The number of rounds at the start that send all entries.
    momentum
        μ of Nesterov momentum, 0 < μ < 1. None: no momentum.
    adaptive
        β of AdaGossip, 0 < β < 1. Every entry then has its own rate γ/(√v̂ + ε), where v̂⁺ = β v̂ + (1 − β) (P q − q)².
        The agents' rates differ, so Σ x is not preserved. The round is not affine, so the algorithm can be trained, but
        not predicted. None: the rate γ for all entries.

    Raises
    ------
    TypeError
        If `compression` is not a compressor.
    ValueError
        If a constant is out of its range.

    Examples
    --------
    The default γ is the share that is sent:

    >>> import ntkp2p as p2p
    >>> p2p.SparsePush(step_size=0.1, compression=p2p.TopK(0.01)).averaging_rate
    0.01
    """

    compression: Compressor
    averaging_rate: Any
    dense_rounds: int = eqx.field(static=True)
    momentum: Any
    adaptive: Any
    stochastic = "column"

    def __init__(
        self,
        step_size: Any,
        compression: Any,
        *,
        averaging_rate: Any = None,
        dense_rounds: Any = 0,
        momentum: Any = None,
        adaptive: Any = None,
    ):
        self.step_size, self.compression = step_size, must_be_compressor(compression)
        self.averaging_rate = compression.averaging_rate if averaging_rate is None else averaging_rate
        self.dense_rounds = whole_rounds("dense_rounds", dense_rounds)
        self.momentum, self.adaptive = momentum, adaptive
        must_be_share("averaging_rate", self.averaging_rate, "the share that is sent is usual", one=True)
        must_be_momentum(momentum)
        if adaptive is not None:
            must_be_share("adaptive", adaptive, "0.999 is usual, None for the same rate for all entries")

    @property
    def has_flow(self):
        # No gradient flow describes the memory.
        return False

    def init(self, x, /):
        xp = namespace(x)
        return _SparseState(
            x=x,
            weights=xp.ones((len(x), 1), x.dtype),
            memory=0 * x,
            dense=xp.asarray(self.dense_rounds),
            phase=xp.asarray(0),
            velocity=None if self.momentum is None else 0 * x,
            variance=None if self.adaptive is None else 0 * x,
        )

    def model(self, state, /):
        return state.x / state.weights

    def round(self, state, world, /):
        return self._exchange(self._descend(state, world), world)

    def _descend(self, state, world):
        step, velocity = nesterov(world.grad(self.model(state)), self.momentum, state.velocity)
        return state._replace(x=state.x - self.step_size * step, velocity=velocity)

    def _exchange(self, state, world):
        everything, xp = state.dense > 0, namespace(state.x, state.dense, self.averaging_rate, self.adaptive)
        sent, memory = with_error_feedback(world, state.x, state.memory, self.compression, everything=everything)
        rate = xp.where(everything, 1, self.averaging_rate)
        gossip_error, rates, variance = world.mix(sent) - sent, rate, state.variance
        if variance is not None:
            variance = self.adaptive * variance + (1 - self.adaptive) * gossip_error**2
            rates = xp.where(everything, 1, self.averaging_rate / (xp.sqrt(variance) + SMALL))
        return state._replace(
            x=state.x + rates * gossip_error,
            weights=state.weights + rate * (world.mix(state.weights) - state.weights),
            memory=memory,
            dense=xp.maximum(state.dense - 1, 0),
            variance=variance,
        )


class _ChocoState(NamedTuple):
    """Models x, their public copies x̂, and the running sums s = W x̂ of received messages."""

    x: Float[Array, "Q d"]
    known: Float[Array, "Q d"]
    received: Float[Array, "Q d"]


class CHOCO(Algorithm):
    """CHOCO-SGD: agents exchange compressed differences to their public copies, over one undirected graph.

    y = x − η g(x),    q = C(y − x̂),    x̂⁺ = x̂ + q,    s⁺ = s + W q,    x⁺ = y + γ (s⁺ − x̂⁺).

    Parameters
    ----------
    step_size
        η > 0.
    compression
        C, for instance `TopK(0.01)`.
    averaging_rate
        γ, 0 < γ ≤ 1. The default is the share of the entries that is sent.

    Raises
    ------
    TypeError
        If `compression` is not a compressor.
    ValueError
        If a constant is out of its range.

    Examples
    --------
    The running sum of received messages requires one fixed graph:

    >>> import ntkp2p as p2p
    >>> algorithm = p2p.CHOCO(step_size=0.1, compression=p2p.RandomK(0.1))
    >>> algorithm.stochastic, algorithm.averaging_rate, bool(algorithm.static)
    ('doubly', 0.1, True)
    """

    compression: Compressor
    averaging_rate: Any
    stochastic = "doubly"
    static = "it sums the received messages, which is only valid for one fixed graph: use SparsePush"

    def __init__(self, step_size: Any, compression: Any, *, averaging_rate: Any = None):
        self.step_size, self.compression = step_size, must_be_compressor(compression)
        self.averaging_rate = compression.averaging_rate if averaging_rate is None else averaging_rate
        must_be_share("averaging_rate", self.averaging_rate, "the share that is sent is usual", one=True)

    @property
    def has_flow(self):
        return False

    def init(self, x, /):
        # All agents know the common start, and W x = x there.
        return _ChocoState(x, x, x)

    def model(self, state, /):
        return state.x

    def round(self, state, world, /):
        y = state.x - self.step_size * world.grad(state.x)
        sent = world.compress(y - state.known, self.compression)
        known, received = state.known + sent, state.received + world.mix(sent)
        return _ChocoState(y + self.averaging_rate * (received - known), known, received)
