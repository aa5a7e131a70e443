r"""Mixing that is drawn at random, independently in every round: stable in the mean, and in the mean square.

Let d_k be the disagreement, the part of the agents' values that is orthogonal to 1. Row sums one keep it to itself:
d_{k+1} = Π W_k d_k with Π = I − 11ᵀ/Q. Hence

    E d_k    = (Π E[W])^k d_0                                    decays with the spectral radius of Π E[W],
    E d_kd_kᵀ = 𝓛^k(d_0 d_0ᵀ),  𝓛(X) = E[Π W X Wᵀ Π]             with that of 𝓛, the matrix E[ΠW ⊗ ΠW].

Convergence in the mean is the weaker of the two: E‖d_k‖² falls by the second. Whole runs whose events are drawn are
likewise: event e applies M_e to the state with probability p_e, and runs converge in the mean square if the
spectral radius of X ↦ Σ p_e M_e X M_eᵀ is below 1.

References
----------
Boyd, Ghosh, Prabhakar and Shah, "Randomized gossip algorithms", IEEE Trans. Information Theory 2006.
Costa, Fragoso and Marques, "Discrete-time Markov jump linear systems", 2005 (mean-square stability).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.dynamics.spectrum import extremes
from ntkp2p.dynamics.step_size import bracket, with_step_size
from ntkp2p.dynamics.system import LinearSystem, linear
from ntkp2p.dynamics.windows import DENSE_SIZE
from ntkp2p.topology.mixing import RunMixing


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
        raise InputError(f"probabilities are {count} numbers ≥ 0 that sum to one, found {p.tolist()}")
    if (worst := np.abs(matrices.sum(axis=2) - 1).max()) > 1e-8:
        raise InputError(f"random mixing needs row sums of one, and one is off by {worst:.3g}: see check_mixing(W)")
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


#: The largest system of whose second moments the eigenvalues are computed.
MOMENTS = 40


@in_float64
def mean_square_radius(system: LinearSystem, /) -> float:
    """By which factor an event takes the second moments of deviations further, where clocks are memoryless.

    Parameters
    ----------
    system
        Of such clocks, of up to `MOMENTS` states.

    Returns
    -------
    radius
        The spectral radius of X ↦ Σ p_e M_e X M_eᵀ on symmetric X: runs converge in the mean square below 1.

    Raises
    ------
    ValueError
        If the system is not of such clocks, or too large.
    """
    n = system.size
    if not system.over_clocks:
        raise InputError("second moments are those of runs over memoryless clocks: see AsynchronousGossip")
    if n > MOMENTS:
        raise InputError(f"second moments of {n} states are more than those of {MOMENTS}: take fewer samples or agents")
    rows, columns = np.triu_indices(n)
    basis = np.zeros((len(rows), n, n))
    basis[np.arange(len(rows)), rows, columns] = basis[np.arange(len(rows)), columns, rows] = 1
    images = np.asarray(_second_moments(system.advance, system.parameters, jnp.asarray(basis)))
    return float(np.abs(np.linalg.eigvals(images[:, rows, columns])).max())


def largest_mean_square_step_size(system: LinearSystem, /) -> float:
    """The η at which `mean_square_radius` passes one, above all between that and 1/h; 0 or inf if there is none.

    Raises
    ------
    ValueError
        As `mean_square_radius`.
    """

    def beyond(eta: float) -> float:
        return mean_square_radius(with_step_size(system, eta)) - 1

    stable, unstable = bracket(beyond, system.curvature)
    if stable == unstable:
        return stable
    from scipy.optimize import brentq  # which takes its time to import

    return float(brentq(beyond, stable, unstable, rtol=1e-7))  # pyright: ignore


@partial(jax.jit, static_argnums=0)
def _second_moments(advance, parameters, X):
    """Σ p_e M_e X M_eᵀ, for several X."""

    def add(total, event):
        step, share = event
        rows = jax.vmap(jax.vmap(partial(linear, advance, parameters | {"mixing": step})))
        return total + share * rows(jnp.swapaxes(rows(X), 1, 2)), None

    return jax.lax.scan(add, jnp.zeros_like(X), parameters["mixing"])[0]


def draws(schedule: RunMixing, /) -> tuple[Float[np.ndarray, "D Q Q"], Float[np.ndarray, " D"]]:
    """A schedule's matrices and how often each occurs, to be read as independent draws."""
    return schedule.matrices, np.bincount(schedule.order, minlength=len(schedule.matrices)) / schedule.period
