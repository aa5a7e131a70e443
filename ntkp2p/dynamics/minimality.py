r"""What of a system can be reached and seen: its inputs are the agents' targets, its outputs their networks' outputs.

In the parameters themselves a wide network's flow has eigenvalues 0, one for each direction of the parameters that no
sample feels: common to all agents, neither mixing nor gradients touch it. These modes are neither controllable nor
observable, and they say nothing about the run. Features of full rank leave them out by construction: were S w = 0 for a
consensus 1 ⊗ w, then w = 0. What may stay hidden in features is disagreement, and that decays on a connected graph.

References
----------
Kalman, "Mathematical description of linear dynamical systems", SIAM J. Control 1963 (minimal realisations).
Hautus, "Controllability and observability conditions of linear autonomous systems", 1969 (the rank tests).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float

from ntkp2p.base.precision import in_float64
from ntkp2p.data import AgentData
from ntkp2p.dynamics.system import LinearSystem

#: Up to this many states the rank tests are made: one singular value decomposition for each distinct eigenvalue.
PBH_SIZE = 128
#: A singular value below this share of the largest is none, and eigenvalues as near are one.
RANK = 1e-9


@dataclass(frozen=True)
class Hidden:
    """Modes of one eigenvalue of A that inputs do not reach, or outputs do not show.

    Attributes
    ----------
    eigenvalue
        λ of A, per unit of flow time.
    uncontrollable, unobservable
        n − rank [A − λI, B] and n − rank [A − λI; C].
    """

    eigenvalue: complex
    uncontrollable: int
    unobservable: int


@in_float64
def realisation(
    system: LinearSystem, data: AgentData, /
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n m"], Float[np.ndarray, "p n"]]:
    """A, B and C of the flow: how targets drive it, and what the agents' networks answer on their own samples.

    Parameters
    ----------
    system
        One that `linear_system` assembled for these data.

    Returns
    -------
    A, B
        Per unit of flow time; B has a column for each number in the agents' targets.
    C
        A row for each of the agents' outputs.
    """
    parameters, eta = system.parameters, system.step_size
    A = (system.matrix() - np.eye(system.size)) / eta
    real = np.flatnonzero(np.broadcast_to(parameters["weights"][..., None] > 0, parameters["targets"].shape))

    def driven(values: Any) -> Any:
        targets = parameters["targets"].reshape(-1).at[real].set(values).reshape(parameters["targets"].shape)
        return system.advance(parameters | {"targets": targets}, jnp.zeros(system.size))

    def shown(s: Any) -> Any:
        z = system.advance.model(parameters, s)
        matrix = parameters["matrix"]
        return (matrix @ z.reshape(len(z), matrix.shape[2], -1)).reshape(-1)[real]

    B = jax.jit(jax.jacobian(driven))(jnp.zeros(len(real))) / eta
    C = jax.jit(jax.jacobian(shown))(jnp.zeros(system.size))
    return A, np.asarray(B), np.asarray(C)


def hidden_modes(
    A: Float[np.ndarray, "n n"],
    B: Float[np.ndarray, "n m"],
    C: Float[np.ndarray, "p n"],
    /,
    *,
    at: complex | float | None = None,
) -> list[Hidden]:
    """The rank tests of Popov, Belevitch and Hautus at every distinct eigenvalue; empty for a minimal system.

    They cost a singular value decomposition for each, O(n⁴) in all: for small systems.

    Parameters
    ----------
    at
        The one λ to test at; by default all eigenvalues.
    """
    values = np.linalg.eigvals(A) if at is None else np.array([at])
    scale = max(np.abs(A).max(), np.finfo(float).tiny)
    B, C = (m * scale / max(np.abs(m).max(), np.finfo(float).tiny) for m in (B, C))
    found = []
    for value in _distinct(values, RANK * max(np.abs(values).max(), scale)):
        away = A - value * np.eye(len(A))
        lost = [len(A) - _rank(m) for m in (np.hstack([away, B]), np.vstack([away, C]))]
        if any(lost):
            found.append(Hidden(complex(value), *lost))
    return sorted(found, key=lambda hidden: -hidden.eigenvalue.real)


def _distinct(values: np.ndarray, tolerance: float) -> list[complex]:
    # A repeated eigenvalue that rounding has spread lies at the mean of its copies.
    groups: list[list[complex]] = []
    for value in sorted(values, key=lambda v: (v.real, v.imag)):
        near = [group for group in groups if abs(value - group[-1]) <= 10 * tolerance]
        (near[0].append(value) if near else groups.append([value]))
    return [complex(np.mean(group)) for group in groups]


def _rank(matrix: np.ndarray) -> int:
    sizes = scipy.linalg.svdvals(matrix)
    return int(np.sum(sizes > RANK * sizes[0]))
