"""Small systems taken by NumPy: the algorithm's own round again, before a compiler would have begun.

A round of the diffusion family is arithmetic on its state, which is x itself, so that it runs on plain arrays as it is
written. Its gradients are those of least squares, g_q(z) = H_q z + h_q with H_q = S_qᵀ S_q / N_q and
h_q = S_qᵀ (f₀ − y)_q / N_q: nothing depends on how many samples an agent holds, and nothing is compiled anew.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from ntkp2p.algorithms import ATC, CTA, DGD, Algorithm, World
from ntkp2p.data import AgentData
from ntkp2p.dynamics.system import Affine, LinearSystem
from ntkp2p.models import Features

#: Their state is x itself, and their rounds are arithmetic.
EAGER = (DGD, CTA, ATC)


@dataclass(frozen=True, eq=False, kw_only=True)
class EagerSystem(LinearSystem):
    """A `LinearSystem` of one mixing matrix whose products NumPy takes.

    Attributes
    ----------
    algorithm
        One of `EAGER`.
    hessians
        H_q, shape (Q, r, r).
    slopes
        h_q, the gradients at the common start, shape (Q, r, c).
    """

    algorithm: Algorithm
    hessians: Float[np.ndarray, "Q r r"]
    slopes: Float[np.ndarray, "Q r c"]

    @cached_property
    def offset(self):
        """b."""
        return self._round(np.zeros((1, self.size)), self.slopes)[0]

    def apply(self, s, /):
        """M s."""
        return self._round(s[None])[0]

    def matrix(self):
        """M as a matrix."""
        return self._round(np.eye(self.size)).T

    def models(self, states, rounds, /):
        """The states, by agent."""
        return states.reshape(len(states), len(self.hessians), -1)

    def directions(self, basis, /):
        """The vectors, by agent."""
        return self.models(basis, np.zeros(len(basis)))

    def _round(self, states: Float[np.ndarray, "m n"], slopes: np.ndarray | float = 0.0) -> Float[np.ndarray, "m n"]:
        """A round of many states at once: side by side, they are one state of longer models."""
        m, (agents, rank, columns) = len(states), self.slopes.shape
        mixing: Any = self.parameters["mixing"]

        def grad(x, /, *, when=True):
            pulls = self.hessians @ x.reshape(agents, rank, -1)
            return (pulls.reshape(agents, rank, columns, m) + np.expand_dims(slopes, -1)).reshape(agents, -1)

        world = World(mix=lambda x: mixing @ x, grad=grad, own=lambda x: mixing.diagonal()[:, None] * x)
        x = np.moveaxis(states.reshape(m, agents, rank * columns), 0, -1).reshape(agents, -1)
        after = self.algorithm.round(x, world).reshape(agents, rank * columns, m)
        return np.moveaxis(after, -1, 0).reshape(m, -1)


def eager_system(
    algorithm: Algorithm, mixing: Float[np.ndarray, "Q Q"], features: Features, data: AgentData, /
) -> EagerSystem:
    """As `ntkp2p.dynamics.linear_system`, for an algorithm of `EAGER` and one mixing matrix."""
    errors = (features.initial - data.targets).reshape(-1, features.columns)
    ends = np.cumsum(data.sizes * (len(errors) // data.samples))[:-1]
    parts = zip(np.split(features.matrix, ends), np.split(errors, ends), data.sizes, strict=True)
    held = [(S.T @ S / n, S.T @ e / n) for S, e, n in parts]
    hessians, slopes = (np.stack(each) for each in zip(*held, strict=True))
    curvature = float(np.linalg.eigvalsh(hessians)[:, -1].max())
    return EagerSystem(
        advance=Affine(),
        parameters={"mixing": mixing},
        initial=np.zeros(slopes.size),
        step_size=float(algorithm.step_size),
        growth=algorithm.growth(mixing, curvature),
        curvature=curvature,
        stable_step_size=algorithm.stable_step_size(mixing, curvature),
        algorithm=algorithm,
        hessians=hessians,
        slopes=slopes,
    )
