"""Small systems evaluated by NumPy: the algorithm's own round, without a compiler.

A round is arithmetic on its state, so that it runs on plain arrays as it is written. Its gradients are those of least
squares, g_q(z) = H_q z + h_q with H_q = S_qᵀ S_q / N_q and h_q = S_qᵀ (f₀ − y)_q / N_q: nothing depends on how many
samples an agent holds, and nothing is compiled.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from ntkp2p.algorithms import Algorithm, Compressor, World
from ntkp2p.algorithms.exogenous import Form
from ntkp2p.base.precision import in_float64
from ntkp2p.data import AgentData
from ntkp2p.dynamics.round import Affine, share_of
from ntkp2p.dynamics.system import LinearSystem, must_have_closed_form, not_affine
from ntkp2p.kernels import Features


@dataclass(frozen=True, eq=False, kw_only=True)
class EagerSystem(LinearSystem):
    """A `LinearSystem` of one mixing matrix whose products NumPy takes.

    Attributes
    ----------
    algorithm
        Whose round it is.
    form
        The structure of its states.
    shapes
        The leaves of a state, whose last axis is that of the models.
    hessians
        H_q, shape (Q, r, r).
    slopes
        h_q, the gradients at the common start, shape (Q, r, c).
    """

    algorithm: Algorithm
    form: Form
    shapes: tuple[tuple[int, ...], ...]
    hessians: Float[np.ndarray, "Q r r"]
    slopes: Float[np.ndarray, "Q r c"]

    @cached_property
    def offset(self):
        """b."""
        return self.round(np.zeros((1, self.size)), self.slopes)[0]

    def apply(self, s, /):
        """M s."""
        return self.round(s[None])[0]

    def matrix(self):
        """M as a matrix."""
        return self.round(np.eye(self.size)).T

    def models(self, states, rounds, /):
        """The agents' coordinates in these states."""
        x = self.algorithm.model(self._side_by_side(states))
        return np.moveaxis(x.reshape(*x.shape[:-1], -1, len(states)), -1, 0)

    def directions(self, basis, /):
        """How the agents' coordinates change along these vectors."""
        return self.models(basis, np.zeros(len(basis)))

    def round(self, states: Float[np.ndarray, "m n"], slopes: Any = 0.0, /) -> Float[np.ndarray, "m n"]:
        """A round of many states at once, each as one row; with `slopes` of 0, without its offset."""
        m, (agents, rank, columns) = len(states), self.slopes.shape
        mixing: Any = self.parameters["mixing"]

        def grad(x, /, *, when: Any = True) -> Any:
            pulls = (self.hessians @ x.reshape(agents, rank, -1)).reshape(agents, rank, columns, m)
            return np.where(when, (pulls + np.expand_dims(slopes, -1)).reshape(agents, -1), 0.0)

        def average(x, /, *, when: Any = True) -> Any:
            return np.where(when, np.broadcast_to(x.mean(axis=0), x.shape), x)

        def compress(x, by: Compressor, /, *, everything: Any = False) -> Any:
            return np.where(everything, 1.0, share_of(by)) * x

        world = World(
            mix=lambda x: mixing @ x,
            grad=grad,
            own=lambda x: mixing.diagonal()[:, None] * x,
            compress=compress,
            average=average,
        )
        return self._rows(self.algorithm.round(self._side_by_side(states), world), m)

    def _side_by_side(self, states: Float[np.ndarray, "m n"]) -> PyTree:
        """Many states as one state of longer models."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        parts = np.split(states, ends, axis=1)
        leaves = [
            np.moveaxis(part.reshape(-1, *shape), 0, -1).reshape(*shape[:-1], -1)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return self.form.join(leaves, [])

    def _rows(self, state: PyTree, m: int) -> Float[np.ndarray, "m n"]:
        """The states that `_side_by_side` has put together."""
        leaves = jax.tree.leaves(state)
        rows = [
            np.moveaxis(leaf.reshape(*shape, m), -1, 0).reshape(m, -1)
            for leaf, shape in zip(leaves, self.shapes, strict=True)
        ]
        return np.concatenate(rows, axis=1)


@in_float64
def eager_system(
    algorithm: Algorithm, mixing: Float[np.ndarray, "Q Q"], features: Features, data: AgentData, /
) -> EagerSystem | None:
    """As `ntkp2p.dynamics.linear_system` over one mixing matrix; None where the round does more than NumPy can.

    That is where something in its state does not move with the models, as push-sum's weights, or where `init` makes the
    state with JAX's own functions. A round that calls such functions is evaluated by them, one operation at a time.

    Raises
    ------
    ValueError
        If the round is not affine.
    """
    must_have_closed_form(algorithm)
    agents, d = data.agents, features.rank * features.columns
    form = Form.of(algorithm, agents)
    if not all(form.moves):
        return None
    leaves = jax.tree.leaves(algorithm.init(np.zeros((agents, d))))
    shapes = tuple(leaf.shape for leaf in leaves)
    if not all(isinstance(leaf, np.ndarray) and leaf.shape[-1] == d for leaf in leaves):
        return None
    errors = (features.initial - data.targets).reshape(-1, features.columns)
    ends = np.cumsum(data.sizes * (len(errors) // data.samples))[:-1]
    parts = zip(np.split(features.matrix, ends), np.split(errors, ends), data.sizes, strict=True)
    held = [(S.T @ S / n, S.T @ e / n) for S, e, n in parts]
    hessians, slopes = (np.stack(each) for each in zip(*held, strict=True))
    curvature = float(np.linalg.eigvalsh(hessians)[:, -1].max())
    system = EagerSystem(
        advance=Affine(),
        parameters={"mixing": mixing},
        initial=np.concatenate([leaf.reshape(-1) for leaf in leaves]),
        step_size=float(algorithm.step_size),
        symmetric=algorithm.is_symmetric(mixing),
        growth=algorithm.growth(mixing, curvature),
        curvature=curvature,
        stable_step_size=algorithm.stable_step_size(mixing, curvature),
        has_flow=algorithm.has_flow,
        algorithm=algorithm,
        form=form,
        shapes=shapes,
        hessians=hessians,
        slopes=slopes,
    )
    one, other = np.random.default_rng(0).normal(size=(2, system.size))
    probes = np.stack([one, other, one + other, 0 * one])
    after = system.round(probes, slopes)
    expected, found = after[0] + after[1], after[2] + after[3]
    if not np.allclose(found, expected, rtol=1e-6, atol=1e-9 * float(np.abs(expected).max())):
        raise not_affine(algorithm)
    return system
