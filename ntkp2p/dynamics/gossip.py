r"""Mixing that is drawn at random, independently in every round: stable in the mean, and in the mean square.

Let d_k be the disagreement, the part of the agents' values that is orthogonal to 1. Row sums one keep it to itself:
d_{k+1} = Π W_k d_k with Π = I − 11ᵀ/Q. Hence

    E d_k    = (Π E[W])^k d_0                                    decays with the spectral radius of Π E[W],
    E d_kd_kᵀ = 𝓛^k(d_0 d_0ᵀ),  𝓛(X) = E[Π W X Wᵀ Π]             with that of 𝓛, the matrix E[ΠW ⊗ ΠW].

Convergence in the mean is the weaker of the two: E‖d_k‖² falls by the second.

References
----------
Boyd, Ghosh, Prabhakar and Shah, "Randomized gossip algorithms", IEEE Trans. Information Theory 2006.
Costa, Fragoso and Marques, "Discrete-time Markov jump linear systems", 2005 (mean-square stability).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ntkp2p.dynamics.stability import DENSE_SIZE, extremes
from ntkp2p.topology import Schedule


class Gossip(NamedTuple):
    """How fast disagreement dies out under random mixing, per round; of the mixing alone, without gradients.

    Attributes
    ----------
    mean
        The spectral radius of Π E[W]: ‖E d_k‖ falls like its k-th power.
    mean_square
        That of E[ΠW ⊗ ΠW]: E‖d_k‖² falls like its k-th power.
    residual
        Of the iteration that found the second; 0 for few agents.
    """

    mean: float
    mean_square: float
    residual: float = 0.0


def gossip(matrices: Float[np.ndarray, "D Q Q"], probabilities: Float[np.ndarray, " D"] | None = None, /) -> Gossip:
    """The two rates of matrices that are drawn independently in every round.

    Parameters
    ----------
    matrices
        With row sums one.
    probabilities
        Of each; by default all alike.

    Raises
    ------
    ValueError
        If the probabilities are not D numbers ≥ 0 that sum to one, or a row does not.
    """
    count, agents, _ = matrices.shape
    p = np.full(count, 1 / count) if probabilities is None else probabilities
    if p.shape != (count,) or p.min() < 0 or abs(p.sum() - 1) > 1e-9:
        raise ValueError(f"probabilities are {count} numbers ≥ 0 that sum to one, found {p.tolist()}")
    if (worst := np.abs(matrices.sum(axis=2) - 1).max()) > 1e-8:
        raise ValueError(f"random mixing needs row sums of one, and one is off by {worst:.3g}: see check_mixing(W)")
    projected = matrices - matrices.mean(axis=1, keepdims=True)  # Π W
    mean = np.abs(np.linalg.eigvals(np.tensordot(p, projected, 1))).max()

    def second_moment(x):
        X = x.reshape(agents, agents)
        return np.einsum("d,dij,jk,dlk->il", p, projected, X, projected, optimize=True).reshape(-1)

    if agents**2 <= DENSE_SIZE:
        square = np.einsum("d,dij,dkl->ikjl", p, projected, projected).reshape(agents**2, agents**2)
        return Gossip(float(mean), float(np.abs(np.linalg.eigvals(square)).max()))
    pairs = extremes(second_moment, agents**2, "LM", rtol=1e-9)
    return Gossip(float(mean), float(np.abs(pairs.values[0])), float(pairs.residuals[0]))


def draws(schedule: Schedule, /) -> tuple[Float[np.ndarray, "D Q Q"], Float[np.ndarray, " D"]]:
    """A schedule's matrices and how often each occurs, to be read as independent draws."""
    return schedule.matrices, np.bincount(schedule.order, minlength=len(schedule.matrices)) / schedule.period
