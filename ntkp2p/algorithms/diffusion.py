"""The diffusion family: DGD, combine-then-adapt and adapt-then-combine.

The table gives the round of each algorithm and the gradient flow that it discretises (t = η k), with the mixing matrix
W, the step size η and the agents' local gradients g:

==========  ===================================  ====================================
algorithm   round                                flow dx/dt
==========  ===================================  ====================================
DGD         x⁺ = W x − η g(x)                    −(I − W) x / η − g(x)
CTA         v = W x,  x⁺ = v − η g(v)            −(I − W) x / η − g(W x)
ATC         x⁺ = W (x − η g(x))                  −(I − W) x / η − W g(x)
==========  ===================================  ====================================

Some authors use the name CTA for DGD.

References
----------
Nedić and Ozdaglar, "Distributed subgradient methods for multi-agent optimization", IEEE TAC 2009 (DGD).
Chen and Sayed, "Diffusion adaptation strategies for distributed optimization and learning over networks",
IEEE TSP 2012 (CTA, ATC).
Yuan, Ling and Yin, "On the convergence of decentralized gradient descent", SIAM J. Optim. 2016 (DGD's step size).
"""

import numpy as np

from ntkp2p.algorithms.algorithm import Algorithm
from ntkp2p.topology.matrix import symmetric
from ntkp2p.topology.spectrum import perron_left


class DGD(Algorithm):
    """Distributed gradient descent: mix, and add a gradient step at the model *before* mixing.

    With a constant step size, its fixed point differs by O(η) from the minimiser of the global loss.

    Parameters
    ----------
    step_size
        η > 0, the length of one round in flow time.

    Examples
    --------
    W x = (2, 2), and the gradients at x = (1, 3) are (1, 2):

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> W = np.array([[0.5, 0.5], [0.5, 0.5]])
    >>> y = np.array([[0.0], [1.0]])
    >>> world = p2p.World(mix=lambda x: W @ x, grad=lambda x: x - y, own=lambda x: x / 2)
    >>> p2p.DGD(step_size=0.5).round(np.array([[1.0], [3.0]]), world).ravel()
    array([1.5, 1. ])
    """

    def round(self, x, world, /):
        return world.mix(x) - self.step_size * world.grad(x)

    def is_symmetric(self, mixing, /):
        return symmetric(mixing)  # for M = W ⊗ I − η blkdiag(H_q)

    def sufficient_step_size(self, mixing, curvature, /):
        # λ_min(M) ≥ λ_min(W) − η λ_max(H) > −1; needs symmetric W (Yuan, Ling and Yin).
        if not self.is_symmetric(mixing):
            return float("nan")
        eigenvalues = np.linalg.eigvalsh(mixing)
        if eigenvalues[0] <= -1 or eigenvalues[-1] > 1 + 1e-12:
            return float("nan")  # W alone does not converge, for any step size
        return float((1 + eigenvalues[0]) / curvature)

    def growth(self, mixing, curvature, /):
        if self.step_size <= self.sufficient_step_size(mixing, curvature):
            return 1.0  # symmetric, with eigenvalues in [−1, 1]
        # W = a I + (1 − a) W' with the self-weights a: the round contracts in the Perron norm if |a − η λ| ≤ a.
        return _perron_bound(mixing) if self.step_size * curvature <= 2 * np.diagonal(mixing).min() else float("nan")


class CTA(Algorithm):
    """Combine, then adapt: step along the gradient at the *mixed* model.

    Parameters
    ----------
    step_size
        η > 0, the length of one round in flow time.

    Examples
    --------
    The gradients at W x = (2, 2) are (2, 1):

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> W = np.array([[0.5, 0.5], [0.5, 0.5]])
    >>> y = np.array([[0.0], [1.0]])
    >>> world = p2p.World(mix=lambda x: W @ x, grad=lambda x: x - y, own=lambda x: x / 2)
    >>> p2p.CTA(step_size=0.5).round(np.array([[1.0], [3.0]]), world).ravel()
    array([1. , 1.5])
    """

    def round(self, x, world, /):
        v = world.mix(x)
        return v - self.step_size * world.grad(v)

    def sufficient_step_size(self, mixing, curvature, /):
        return _contractive_step_size(mixing, curvature)

    def growth(self, mixing, curvature, /):
        return _perron_bound(mixing) if self.step_size * curvature <= 2 else float("nan")


class ATC(Algorithm):
    """Adapt, then combine: step along the gradient, and mix the result.

    Parameters
    ----------
    step_size
        η > 0, the length of one round in flow time.

    Examples
    --------
    The gradient steps lead to (0.5, 2), and mixing averages them:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> W = np.array([[0.5, 0.5], [0.5, 0.5]])
    >>> y = np.array([[0.0], [1.0]])
    >>> world = p2p.World(mix=lambda x: W @ x, grad=lambda x: x - y, own=lambda x: x / 2)
    >>> p2p.ATC(step_size=0.5).round(np.array([[1.0], [3.0]]), world).ravel()
    array([1.25, 1.25])
    """

    def round(self, x, world, /):
        return world.mix(x - self.step_size * world.grad(x))

    def sufficient_step_size(self, mixing, curvature, /):
        return _contractive_step_size(mixing, curvature)

    def growth(self, mixing, curvature, /):
        return _perron_bound(mixing) if self.step_size * curvature <= 2 else float("nan")


def _contractive_step_size(mixing: np.ndarray, curvature: float) -> float:
    # ‖W‖₂ ≤ 1 holds for doubly stochastic W. Then ‖W (I − η H)‖₂ < 1 if η < 2 / λ_max(H).
    return 2 / curvature if np.linalg.norm(mixing, 2) <= 1 + 1e-12 else float("nan")


def _perron_bound(mixing: np.ndarray) -> float:
    """Return √(max π / min π) with π the left Perron vector, π W = π, as a bound on growth; NaN if there is none.

    W does not increase Σ_q π_q ‖x_q‖²: by Jensen's inequality, Σ_q π_q ‖Σ_r W[q, r] x_r‖² ≤ Σ_r π_r ‖x_r‖². Neither
    does a local gradient step of every agent with η λ_max(H) ≤ 2. √(max π / min π) compares the square root of this sum
    with the Euclidean norm. For a doubly stochastic W it is 1.
    """
    rows = mixing.sum(axis=1)
    if (mixing < 0).any() or not np.allclose(rows, 1, rtol=0, atol=1e-9):
        return float("nan")
    if np.allclose(mixing.sum(axis=0), 1, rtol=0, atol=1e-9):
        return 1.0
    perron = perron_left(mixing)
    if perron is None or perron.min() <= 0 or not np.allclose(perron @ mixing, perron, rtol=0, atol=1e-12):
        return float("nan")
    return float(np.sqrt(perron.max() / perron.min()))
