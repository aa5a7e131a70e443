r"""Modifiers: an algorithm with changed operations, for instance with delays.

A modifier wraps an algorithm and the operations of its `World`, for both training and prediction. With v the models at
which gradients are evaluated and x the values that are mixed:

============  ==================================================
operation     with a delay of τ rounds
============  ==================================================
``grad(v)``   g(v_{k−τ})
``mix(x)``    diag(W_k) x_k + (W_k − diag(W_k)) x_{k−τ}
============  ==================================================

The delayed values, x_{k−τ}, …, x_{k−1}, belong to the state. An affine round remains affine, in an augmented system of
n (1 + τ) states.

References
----------
Agarwal and Duchi, "Distributed delayed stochastic optimization", NeurIPS 2011 (delayed gradients).
Tsitsiklis, Bertsekas and Athans, "Distributed asynchronous deterministic and stochastic gradient optimization
algorithms", IEEE TAC 1986 (delayed messages).
"""

from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkp2p.algorithms.algorithm import Algorithm
from ntkp2p.algorithms.diffusion import ATC, CTA, DGD
from ntkp2p.base.arrays import namespace
from ntkp2p.base.checks import whole_rounds
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.topology.matrix import symmetric

#: The longest delay, in rounds; the state contains one model for each round of delay.
LONGEST = 10_000
#: What can be delayed: the key in the table [algorithm], and the parameter of `Delayed`.
LATE = {"gradient_delay": "gradients", "message_delay": "messages"}


class Modifier(Algorithm):
    """An algorithm with changed operations; the `round` of a subclass defines the change.

    Parameters
    ----------
    algorithm
        The algorithm to modify. The modifier has its step size.

    Attributes
    ----------
    step_size
        η of the modified algorithm.

    Raises
    ------
    TypeError
        If the argument is not an algorithm.
    """

    #: The modified algorithm without its step size, which is a field of the modifier.
    _inner: Algorithm

    def __init__(self, algorithm: Any, /):
        if not isinstance(algorithm, Algorithm):
            raise InputTypeError(
                f"{type(self).__name__} modifies an algorithm, found {algorithm!r}: "
                f"for instance {type(self).__name__}(DGD(step_size=0.1), ...)"
            )
        self.step_size = algorithm.step_size
        self._inner = eqx.tree_at(lambda a: a.step_size, algorithm, None)

    @property
    def algorithm(self) -> Algorithm:
        """The modified algorithm."""
        return eqx.tree_at(lambda a: a.step_size, self._inner, self.step_size, is_leaf=lambda leaf: leaf is None)

    @property
    def stochastic(self):  # pyright: ignore
        """The requirement of the modified algorithm on the mixing matrix."""
        return self._inner.stochastic

    @property
    def static(self):  # pyright: ignore
        """As for the modified algorithm."""
        return self._inner.static

    @property
    def synchronous(self):  # pyright: ignore
        """As for the modified algorithm."""
        return self._inner.synchronous

    @property
    def nonlinear(self):
        return self.algorithm.nonlinear

    @property
    def name(self):
        return f"{type(self).__name__} {self._inner.name}"


class _State(NamedTuple):
    """The state of the modified algorithm, and the delayed values, oldest first."""

    state: PyTree
    gradients: Float[Array, "Q gradients d"]
    messages: Float[Array, "Q messages d"]


class Delayed(Modifier):
    """An algorithm whose gradients or messages are delayed by a fixed number of rounds.

    Before the first round, all values are those of the initial models.

    Parameters
    ----------
    algorithm
        An algorithm whose round calls each delayed operation once, for instance `DGD(step_size=0.1)`.
    gradients
        τ ≥ 0: gradients are evaluated at the models of τ rounds ago.
    messages
        τ ≥ 0: the values received from neighbours are τ rounds old; the agent's own value is current.

    Attributes
    ----------
    step_size
        η of the modified algorithm.

    Raises
    ------
    TypeError
        If the argument is not an algorithm.
    ValueError
        If a delay is not an integer ≥ 0; in the first round, if the algorithm does not call a delayed operation
        exactly once.

    Examples
    --------
    For gradients that are τ = 2 rounds old, the sufficient step size is 2 sin(π/(2(2τ + 1))) divided by the curvature:

    >>> import ntkp2p as p2p
    >>> W = p2p.metropolis(p2p.graphs.complete(3))
    >>> late = p2p.Delayed(p2p.DGD(step_size=0.1), gradients=2)
    >>> round(late.sufficient_step_size(W, 1.0), 6)
    0.618034
    """

    gradients: int = eqx.field(static=True)
    messages: int = eqx.field(static=True)

    def __init__(self, algorithm: Any, /, *, gradients: Any = 0, messages: Any = 0):
        super().__init__(algorithm)
        self.gradients = whole_rounds("gradients", gradients, most=LONGEST)
        self.messages = whole_rounds("messages", messages, most=LONGEST)

    @property
    def synchronous(self):
        """Why agents must not be asynchronous, and what to use instead."""
        return (
            "its delays count rounds, but asynchronous agents have events: use LocalSGD(delay=...) and "
            "AsynchronousGossip(transmission=...)"
        )

    def init(self, x, /):
        past = (
            namespace(x).broadcast_to(x[:, None], (len(x), delay, x.shape[1]))
            for delay in (self.gradients, self.messages)
        )
        return _State(self._inner.init(x), *past)

    def model(self, state, /):
        return self.algorithm.model(state.state)

    def round(self, state, world, /):
        gradients = _DelayLine("gradients", state.gradients)
        messages = _DelayLine("messages", state.messages)

        def mix(x):
            if not self.messages:
                return world.mix(x)
            late = messages.shift(x)
            return world.mix(late) + world.own(x - late)

        def grad(v, /, *, when=True):
            return world.grad(gradients.shift(v), when=when)

        delayed = world._replace(mix=mix, grad=grad)
        inner = self.algorithm.round(state.state, delayed)
        return _State(inner, gradients.shifted(self._inner), messages.shifted(self._inner))

    @property
    def has_flow(self):
        # ẋ(t) depends on x(t − τ): `ntkp2p.dynamics.delay` computes its characteristic roots.
        return not (self.gradients or self.messages) and self._inner.has_flow

    def is_symmetric(self, mixing, /):
        return not (self.gradients or self.messages) and self.algorithm.is_symmetric(mixing)

    def growth(self, mixing, curvature, /):
        return float("nan") if self.gradients or self.messages else self.algorithm.growth(mixing, curvature)

    def sufficient_step_size(self, mixing, curvature, /):
        if not (self.gradients or self.messages):
            return self.algorithm.sufficient_step_size(mixing, curvature)
        if self.gradients and self.messages:
            return float("nan")
        if self.gradients:
            return _bound_with_late_gradients(self._inner, mixing, self.gradients) / curvature
        return _bound_with_late_messages(self._inner, mixing) / curvature

    def __repr__(self):
        return f"Delayed({self.algorithm!r}, gradients={self.gradients}, messages={self.messages})"


class _DelayLine:
    """The values of the last τ rounds. Each round appends one value and removes the oldest; with τ = 0 they agree."""

    def __init__(self, name: str, values: Float[Any, "Q delay d"]):
        self.name, self.values, self.calls = name, values, 0

    def shift(self, x: Float[Any, "Q d"]) -> Float[Any, "Q d"]:
        self.calls += 1
        if self.values.shape[::2] != x.shape:  # not models
            raise InputError(
                f"{self.name} can only be delayed if a round exchanges nothing but models, but this one exchanges "
                f"values of shape {x.shape} as well: leave {self.name} out"
            )
        line = namespace(self.values, x).concatenate([self.values, x[:, None]], axis=1)
        self.values = line[:, 1:]
        return line[:, 0]

    def shifted(self, algorithm: Algorithm) -> Float[Any, "Q delay d"]:
        # A second value in the same round would be used as the next round's value.
        if self.values.shape[1] and self.calls != 1:
            operation = {"gradients": "world.grad", "messages": "world.mix"}[self.name]
            raise InputError(
                f"{self.name} can only be delayed if a round calls {operation} once, but {algorithm.name} calls it "
                f"{self.calls} times: leave {self.name} out"
            )
        return self.values


def _bound_with_late_gradients(algorithm: Algorithm, mixing: np.ndarray, delay: int) -> float:
    """A value of η λ_max(H) below which DGD with symmetric W is stable; NaN for other algorithms.

    A mode z^k v satisfies z = λ − η h z^{−τ}, where λ and h are the Rayleigh quotients of W and H with v. As η h grows,
    the mode with λ = 1 reaches |z| = 1 first among those with λ in [0, 1], at η h = 2 sin(π / (2 (2τ + 1))). For odd τ,
    a negative λ behaves as −λ; for even τ, it reaches z = −1 at η h = 1 + λ.
    """
    if type(algorithm) is not DGD or not symmetric(mixing):
        return float("nan")
    eigenvalues = np.linalg.eigvalsh(mixing)
    if eigenvalues[0] <= -1 or eigenvalues[-1] > 1 + 1e-12:
        return float("nan")
    bound = 2 * np.sin(np.pi / (2 * (2 * delay + 1)))
    return float(bound if delay % 2 else min(bound, 1 + eigenvalues[0]))


def _bound_with_late_messages(algorithm: Algorithm, mixing: np.ndarray) -> float:
    """The largest η λ_max(H) for which max_q ‖x_q‖ cannot grow, for any delay of the messages; NaN if unknown.

    The norm of an average with weights ≥ 0 is at most the largest norm of its terms, and the norm of (w I − η H_q) x_q
    is at most that of w x_q if η h ≤ 2 w.
    """
    if (mixing < 0).any() or not np.allclose(mixing.sum(axis=1), 1, rtol=0, atol=1e-9):
        return float("nan")
    least = 2 * float(np.diagonal(mixing).min())
    return {DGD: least or float("nan"), CTA: 2.0, ATC: 2.0}.get(type(algorithm), float("nan"))
