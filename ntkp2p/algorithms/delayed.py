r"""Modifiers: another algorithm in a world that is not ideal.

A modifier wraps an algorithm and the verbs that its round is handed; what it changes about the world, it changes in
training and in prediction alike. Late by τ rounds, for v the models at which gradients are taken and x what is mixed:

============  ==================================================
verb          with a delay of τ rounds
============  ==================================================
``grad(v)``   g(v_{k−τ})
``mix(x)``    diag(W_k) x_k + (W_k − diag(W_k)) x_{k−τ}
============  ==================================================

The values that are on their way, x_{k−τ}, …, x_{k−1}, belong to the state. A round that was affine remains so, in an
augmented system of n (1 + τ) states.

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

#: The longest delay, in rounds; the state holds a gradient or a model for each of them.
LONGEST = 10_000
#: What may be late: the key of a table [algorithm], and the parameter of `Delayed`.
LATE = {"gradient_delay": "gradients", "message_delay": "messages"}


class Modifier(Algorithm):
    """Another algorithm in a changed world; the subclass's `round` says what is changed.

    Parameters
    ----------
    algorithm
        What is modified. The modifier has its step size.

    Attributes
    ----------
    step_size
        η of the algorithm that is modified.

    Raises
    ------
    TypeError
        If that is not an algorithm.
    """

    #: Without its step size, of which there is one only: the modifier's own.
    _form: Algorithm

    def __init__(self, algorithm: Any, /):
        if not isinstance(algorithm, Algorithm):
            raise InputTypeError(
                f"{type(self).__name__} modifies an algorithm, found {algorithm!r}: "
                f"for instance {type(self).__name__}(DGD(step_size=0.1), ...)"
            )
        self.step_size = algorithm.step_size
        self._form = eqx.tree_at(lambda a: a.step_size, algorithm, None)

    @property
    def algorithm(self) -> Algorithm:
        """What is modified."""
        return eqx.tree_at(lambda a: a.step_size, self._form, self.step_size, is_leaf=lambda leaf: leaf is None)

    @property
    def stochastic(self):  # pyright: ignore
        """As the algorithm that is modified asks for."""
        return self._form.stochastic

    @property
    def static(self):  # pyright: ignore
        """As of the algorithm that is modified."""
        return self._form.static

    @property
    def synchronous(self):  # pyright: ignore
        """As of the algorithm that is modified."""
        return self._form.synchronous

    @property
    def nonlinear(self):
        return self.algorithm.nonlinear

    @property
    def name(self):
        return f"{type(self).__name__} {self._form.name}"


class _State(NamedTuple):
    """The algorithm's own state, and what is on its way, oldest first."""

    state: PyTree
    gradients: Float[Array, "Q gradients d"]
    messages: Float[Array, "Q messages d"]


class Delayed(Modifier):
    """Another algorithm whose gradients or messages are a fixed number of rounds old.

    Before the first round, every agent had the model with which it begins.

    Parameters
    ----------
    algorithm
        One whose round mixes once and takes gradients once, for instance `DGD(step_size=0.1)`.
    gradients
        τ ≥ 0: agents step along the gradient where they were τ rounds ago.
    messages
        τ ≥ 0: what an agent hears from others is τ rounds old; its own share is not.

    Attributes
    ----------
    step_size
        η of the algorithm that is modified.

    Raises
    ------
    TypeError
        If what is delayed is not an algorithm.
    ValueError
        If a delay is not a whole number ≥ 0; in the first round, if the algorithm does not call a delayed verb exactly
        once.

    Examples
    --------
    Gradients that are τ = 2 rounds old bear 2 sin(π/(2(2τ + 1))) of one over the curvature:

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
        """Why its agents must not be asynchronous, and what to use instead."""
        return (
            "its delays count rounds, and events have their own: take LocalSGD(delay=...) and "
            "AsynchronousGossip(transmission=...)"
        )

    def init(self, x, /):
        past = (
            namespace(x).broadcast_to(x[:, None], (len(x), delay, x.shape[1]))
            for delay in (self.gradients, self.messages)
        )
        return _State(self._form.init(x), *past)

    def model(self, state, /):
        return self.algorithm.model(state.state)

    def round(self, state, world, /):
        gradients = _Queue("gradients", state.gradients)
        messages = _Queue("messages", state.messages)

        def mix(x):
            if not self.messages:
                return world.mix(x)
            heard = messages.exchange(x)
            return world.mix(heard) + world.own(x - heard)

        def grad(v, /, *, when=True):
            return world.grad(gradients.exchange(v), when=when)

        late = world._replace(mix=mix, grad=grad)
        own = self.algorithm.round(state.state, late)
        return _State(own, gradients.rest(self._form), messages.rest(self._form))

    @property
    def has_flow(self):
        # ẋ(t) depends on x(t − τ): `ntkp2p.dynamics.delay` has its characteristic roots.
        return not (self.gradients or self.messages) and self._form.has_flow

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
            return _with_late_gradients(self._form, mixing, self.gradients) / curvature
        return _with_late_messages(self._form, mixing) / curvature

    def __repr__(self):
        return f"Delayed({self.algorithm!r}, gradients={self.gradients}, messages={self.messages})"


class _Queue:
    """Values on their way: each round one enters, and the oldest leaves. Without delay it is the same one."""

    def __init__(self, name: str, waiting: Float[Any, "Q delay d"]):
        self.name, self.waiting, self.calls = name, waiting, 0

    def exchange(self, x: Float[Any, "Q d"]) -> Float[Any, "Q d"]:
        self.calls += 1
        if self.waiting.shape[::2] != x.shape:  # of something else than models
            raise InputError(
                f"{self.name} can be delayed where a round exchanges models only, and this one exchanges values of "
                f"shape {x.shape} as well: leave {self.name} out"
            )
        line = namespace(self.waiting, x).concatenate([self.waiting, x[:, None]], axis=1)
        self.waiting = line[:, 1:]
        return line[:, 0]

    def rest(self, algorithm: Algorithm) -> Float[Any, "Q delay d"]:
        # A second value in a round would take the place of the next round's.
        if self.waiting.shape[1] and self.calls != 1:
            verb = {"gradients": "world.grad", "messages": "world.mix"}[self.name]
            raise InputError(
                f"{self.name} can be delayed where a round calls {verb} once, and {algorithm.name} calls it "
                f"{self.calls} times: leave {self.name} out"
            )
        return self.waiting


def _with_late_gradients(algorithm: Algorithm, mixing: np.ndarray, delay: int) -> float:
    """The largest η λ_max(H) at which DGD with symmetric W is stable for sure; nan for others.

    A mode z^k v has z = λ − η h z^{−τ}, where λ and h are the Rayleigh quotients of W and H with v. Of all λ in [0, 1],
    λ = 1 is the first to reach modulus 1, at η h = 2 sin(π / (2 (2τ + 1))). A negative λ is like −λ for odd τ; for even
    τ it reaches z = −1, at η h = 1 + λ.
    """
    if type(algorithm) is not DGD or not symmetric(mixing):
        return float("nan")
    eigenvalues = np.linalg.eigvalsh(mixing)
    if eigenvalues[0] <= -1 or eigenvalues[-1] > 1 + 1e-12:
        return float("nan")
    bound = 2 * np.sin(np.pi / (2 * (2 * delay + 1)))
    return float(bound if delay % 2 else min(bound, 1 + eigenvalues[0]))


def _with_late_messages(algorithm: Algorithm, mixing: np.ndarray) -> float:
    """The largest η λ_max(H) at which the largest ‖x_q‖ of the agents cannot grow, however old the messages; or nan.

    An average with weights ≥ 0 is not longer than its longest part; nor
    is (w I − η H_q) x_q longer than w x_q for η h ≤ 2 w.
    """
    if (mixing < 0).any() or not np.allclose(mixing.sum(axis=1), 1, rtol=0, atol=1e-9):
        return float("nan")
    least = 2 * float(np.diagonal(mixing).min())
    return {DGD: least or float("nan"), CTA: 2.0, ATC: 2.0}.get(type(algorithm), float("nan"))
