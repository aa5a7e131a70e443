r"""Algorithm × mixing × features → a linear system, by linearising the algorithm's own round.

    rounds         s_{k+1} = M s_k + b
    gradient flow  ds/dt = A s + b/η,   A = (M − I)/η,   t = η k

No linear system is derived by hand: the round that trains is handed the gradients of the linear model, which makes it
an affine map of the state, and `jax.linearize` yields M and b.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from ntkp2p.algorithms import Algorithm, World
from ntkp2p.data import AgentData
from ntkp2p.models import Features
from ntkp2p.precision import in_float64


@dataclass(frozen=True)
class LinearSystem:
    """s_{k+1} = M s_k + b, one step a round, and its flow ds/dt = (M − I) s/η + b/η.

    Attributes
    ----------
    apply
        s ↦ M s for s of shape (n,); never forms M.
    offset
        b, shape (n,).
    initial
        s_0, shape (n,).
    model
        s ↦ the agents' coordinates (Q, rank·columns).
    step_size
        η, flow time per round.
    symmetric
        Whether M is, as the algorithm declares.
    curvature
        The largest eigenvalue of any agent's Hessian.
    stable_step_size
        The textbook's largest stable step size of the rounds, nan where there is none.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    offset: Float[np.ndarray, " n"]
    initial: Float[np.ndarray, " n"]
    model: Callable
    step_size: float
    symmetric: bool
    curvature: float
    stable_step_size: float

    @property
    def size(self) -> int:
        """n, the number of states."""
        return len(self.initial)

    def matrix(self) -> Float[np.ndarray, "n n"]:
        """M as a matrix: for small systems."""
        return np.stack([self.apply(e) for e in np.eye(self.size)], axis=1)

    def __repr__(self) -> str:
        kind = "symmetric" if self.symmetric else "nonsymmetric"
        return f"LinearSystem({self.size} states, {kind}, step_size={self.step_size:g})"


@in_float64
def linear_system(
    algorithm: Algorithm,
    mixing: np.ndarray,
    features: Features,
    data: AgentData,
    /,
    *,
    columns: Float[np.ndarray, "rows _"] | None = None,
) -> LinearSystem:
    """The system that an algorithm makes of linear models in features.

    Parameters
    ----------
    algorithm
        Any algorithm whose round is affine in the state when the gradients are.
    mixing
        W, shape (Q, Q).
    features
        S and f₀ on the data's inputs in agent order.
    data
        The agents' data.
    columns
        Initial errors in place of f₀ − y, one column for each output that is followed: any number of them where the
        outputs share a kernel, for then each column goes its own way.

    Raises
    ------
    ValueError
        If the round is not affine: it can be trained, not predicted.
    """
    errors = (features.initial - data.targets).reshape(-1, features.columns) if columns is None else columns
    matrix, residual = _agent_blocks(features.matrix, data), _agent_blocks(errors, data)
    shape = (data.agents, features.rank, errors.shape[1])
    sizes = jnp.asarray(data.sizes, float)[:, None, None]

    def grad(z):
        error = residual + matrix @ z.reshape(shape)
        return (jnp.swapaxes(matrix, 1, 2) @ error / sizes).reshape(z.shape)

    world = World(mix=lambda z: jnp.asarray(mixing) @ z, grad=grad)
    state = algorithm.init(jnp.zeros((data.agents, features.rank * errors.shape[1])))
    initial, unravel = ravel_pytree(state)

    @jax.jit
    def advance(s):
        return ravel_pytree(algorithm.round(unravel(s), world))[0]

    offset, linear = jax.linearize(advance, jnp.zeros_like(initial))
    _must_be_affine(algorithm, advance, offset, linear)
    product = jax.jit(linear)

    @in_float64
    def apply(s):
        return np.asarray(product(jnp.asarray(s)))

    blocks = np.asarray(matrix)
    gram = blocks @ blocks.swapaxes(1, 2) / data.sizes[:, None, None]
    curvature = float(np.linalg.eigvalsh(gram).max())
    return LinearSystem(
        apply=apply,
        offset=np.asarray(offset),
        initial=np.asarray(initial),
        model=lambda s: algorithm.model(unravel(s)),
        step_size=float(algorithm.step_size),
        symmetric=algorithm.is_symmetric(mixing),
        curvature=curvature,
        stable_step_size=algorithm.stable_step_size(mixing, curvature),
    )


def _agent_blocks(rows: np.ndarray, data: AgentData):
    """Every agent's rows, padded with zeros to the largest; an exact kernel of C outputs has C rows for a sample."""
    blocks = data.per_agent(rows.reshape(data.samples, -1, rows.shape[-1]))
    return jnp.asarray(blocks.reshape(data.agents, -1, rows.shape[-1]))


def _must_be_affine(algorithm, advance, offset, linear) -> None:
    probe = np.random.default_rng(0).normal(size=offset.shape)
    expected = offset + linear(probe)
    if not np.allclose(advance(probe), expected, rtol=1e-6, atol=1e-9 * float(jnp.abs(expected).max())):
        raise ValueError(
            f"one round of {type(algorithm).__name__} is not affine in the state, so it has no closed form: train it"
        )
