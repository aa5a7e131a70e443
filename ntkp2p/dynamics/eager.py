"""Linear systems over one mixing matrix whose rounds NumPy takes, without a compiler where the algorithm needs none.

A round treats all coordinates of the models alike: it sums agents' values, and takes gradients at such sums. Running it
once on unit vectors shows which. With s the rows of the state, one for each agent and each part that moves with the
models, and Q the agents,

    v_i = C_i [s; g_1; …; g_{i−1}],    g_i = gradients at v_i,    s⁺ = A [s; g_1; …; g_m],    models = P s,

with small matrices C_i, A and P that do not depend on the data. Gradients are those of least squares,
g_q(v) = F_qᵀ F_q v + h_q, with F_qᵀ F_q = S_qᵀ S_q / N_q and h_q = S_qᵀ (f₀ − y)_q / N_q.

Where weights of the algorithm's own change from round to round, as push-sum's do, so do C_i, A and P.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from ntkp2p.algorithms import Algorithm
from ntkp2p.algorithms.exogenous import FEW, Form
from ntkp2p.base.arrays import LACKING, fixed, namespace
from ntkp2p.base.precision import in_float64
from ntkp2p.data import AgentData
from ntkp2p.dynamics.round import Affine, agent_blocks, world_of
from ntkp2p.dynamics.system import LinearSystem, must_have_closed_form
from ntkp2p.dynamics.timetable import Timetable, timetable_of
from ntkp2p.kernels import Features
from ntkp2p.topology.schedules import as_run_mixing

#: Random columns beside the unit vectors, on which it is seen whether the sums found are all that a round does.
PROBES = 3
#: Numbers that the matrices of all rounds may have together.
LARGEST = 2**24


class _Sums(NamedTuple):
    """C_i (padded with zeros), A and P of one round, or with a leading axis of several."""

    points: Float[np.ndarray, "*rounds m Q all"]
    after: Float[np.ndarray, "*rounds rows all"]
    models: Float[np.ndarray, "*rounds Q rows"]


@dataclass(frozen=True, eq=False, kw_only=True)
class EagerSystem(LinearSystem):
    """A `LinearSystem` over one mixing matrix whose products NumPy takes.

    Its `parameters["exogenous"]` are C, A and P of the module's docstring, of all rounds or of each.

    Attributes
    ----------
    factors
        F_q, shape (Q, rows, r).
    slopes
        h_q, the gradients at the common start, shape (Q, r, c).
    """

    factors: Float[np.ndarray, "Q rows r"]
    slopes: Float[np.ndarray, "Q r c"]

    @cached_property
    def offset(self):
        """b."""
        return self._round(np.zeros((1, self.size)), self._sums(0), driven=True)[0]

    def apply(self, s, /):
        """M s."""
        return self._round(s[None], self._sums(0), driven=False)[0]

    def matrix(self):
        """M as a matrix."""
        return self._round(np.eye(self.size), self._sums(0), driven=False).T

    def models(self, states, rounds, /):
        """The agents' coordinates in these states, which come before these rounds."""
        matrices = self.parameters["exogenous"][2]
        matrices = matrices[self.timetable.place(np.asarray(rounds))] if self.varying else matrices
        return matrices @ states.reshape(len(states), matrices.shape[-1], -1)

    def directions(self, basis, /):
        """How the agents' coordinates change along these vectors."""
        return self.models(basis, np.zeros(len(basis), int))

    def over(self, states, begin, count, /, *, driven=True):
        """States taken over `count` rounds from round `begin` on."""
        with np.errstate(over="ignore", invalid="ignore"):  # an unstable system overflows
            for place in self.timetable.place(np.arange(begin, begin + count)):
                states = self._round(states, self._sums(place), driven=driven)
        return states

    def _sums(self, place: Any) -> _Sums:
        """Those of one of the timetable's rounds."""
        stacks = self.parameters["exogenous"]
        return _Sums(*(stack[place] for stack in stacks)) if self.varying else _Sums(*stacks)

    def _round(self, states: Float[np.ndarray, "p n"], sums: _Sums, *, driven: bool) -> Float[np.ndarray, "p n"]:
        p, (agents, rank, columns) = len(states), self.slopes.shape
        z = states.reshape(p, -1, rank * columns)
        for point in sums.points:
            v = (point[:, : z.shape[1]] @ z).reshape(p, agents, rank, columns)
            g = self.factors.swapaxes(1, 2) @ (self.factors @ v) + (self.slopes if driven else 0.0)
            z = np.concatenate([z, g.reshape(p, agents, -1)], axis=1)
        return (sums.after @ z).reshape(p, -1)


@in_float64
def eager_system(
    algorithm: Algorithm,
    mixing: Float[np.ndarray, "Q Q"],
    features: Features,
    data: AgentData,
    /,
    *,
    rounds: int | None = None,
) -> EagerSystem | None:
    """As `ntkp2p.dynamics.linear_system` over one mixing matrix; None where NumPy's sums are not all that a round does.

    That is where a round needs JAX's arrays, is not affine, treats the coordinates of a model in different ways, or
    differs from round to round for so long that the compiled system is quicker; and where rounds differ, but have a
    flow.

    Parameters
    ----------
    rounds
        As for `linear_system`.

    Raises
    ------
    ValueError
        If the algorithm says itself that it has no closed form.
    """
    must_have_closed_form(algorithm)
    agents, d = data.agents, features.rank * features.columns
    form = Form.of(algorithm, agents)
    try:
        leaves = form.split(algorithm.init(fixed(np.zeros((agents, d)))))[0]
    except LACKING:
        return None
    shapes = tuple(leaf.shape[:-1] for leaf in leaves)
    if not leaves or any(leaf.shape[-1] != d for leaf in leaves):
        return None
    _, timetable, exogenous = timetable_of(algorithm, as_run_mixing(mixing), rounds)
    if len(timetable.order) and algorithm.has_flow:
        return None
    sums = _sums_of(algorithm, form, shapes, mixing, timetable, exogenous)
    if sums is None:
        return None
    factors, slopes = _least_squares(features, data)
    curvature = float(np.linalg.norm(factors, 2, axis=(1, 2)).max() ** 2)
    growth, alike = algorithm.growth(mixing, curvature), not len(timetable.order)
    return EagerSystem(
        advance=Affine(),
        parameters={"mixing": mixing if alike else mixing[None], "exogenous": list(sums)},
        initial=np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves]),
        step_size=float(algorithm.step_size),
        symmetric=alike and algorithm.is_symmetric(mixing),
        growth=growth if alike or growth == 1 else float("nan"),
        curvature=curvature,
        sufficient_step_size=algorithm.sufficient_step_size(mixing, curvature),
        has_flow=algorithm.has_flow,
        timetable=timetable,
        factors=factors,
        slopes=slopes,
    )


def _least_squares(features: Features, data: AgentData) -> tuple[np.ndarray, np.ndarray]:
    """F_q and h_q of all agents, with no more rows of F_q than the features have."""
    errors = (features.initial - data.targets).reshape(data.samples, -1, features.columns)
    rows = agent_blocks(features.matrix, data) / np.sqrt(data.sizes)[:, None, None]
    held = data.per_agent(errors).reshape(*rows.shape[:2], -1) / np.sqrt(data.sizes)[:, None, None]
    slopes = rows.swapaxes(1, 2) @ held
    return (np.linalg.qr(rows)[1] if rows.shape[1] > rows.shape[2] else rows), slopes


@np.errstate(all="ignore")  # what is not finite is not taken
def _sums_of(
    algorithm: Algorithm, form: Form, shapes: tuple, mixing: np.ndarray, timetable: Timetable, exogenous: list
) -> _Sums | None:
    """C, A and P, of every round of the timetable if rounds differ; None if they are not what a round does."""
    agents, rows, differ = len(mixing), sum(int(np.prod(shape)) for shape in shapes), len(timetable.order)
    exogenous = [fixed(np.asarray(leaf)) for leaf in exogenous]
    tried = _calls(algorithm, form, shapes, mixing, [leaf[0] if differ else leaf for leaf in exogenous])
    if tried is None:
        return None
    calls, plain = tried
    width, count = rows + calls * agents, max(1, differ)
    if count * width**2 > LARGEST:
        return None
    of_round = partial(_of_a_round, algorithm, form, shapes, calls, mixing)
    if not differ:
        found = jax.tree.map(lambda leaf: leaf[None], of_round(exogenous))
    elif differ <= FEW and plain:
        each = (of_round([leaf[k] for leaf in exogenous]) for k in range(differ))
        found = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    else:
        constants, rest = eqx.partition(algorithm, eqx.is_inexact_array_like)
        longer = 2 ** (differ - 1).bit_length() - differ  # few lengths are compiled
        stacks = [np.pad(leaf, [(0, longer), *[(0, 0)] * (leaf.ndim - 1)], "edge") for leaf in exogenous]
        found = _of_all_rounds(rest, form, shapes, calls, constants, mixing, stacks)
    after, points, models = jax.tree.map(lambda leaf: np.asarray(leaf)[:count], found)
    after = np.concatenate([leaf.reshape(count, -1, width + PROBES) for leaf in after], axis=1)
    points = np.stack(points, axis=1) if calls else np.zeros((count, 0, agents, width + PROBES))
    sums = _Sums(points[..., :-PROBES], after[..., :-PROBES], models[..., :rows])
    if not _is_all(sums, points[..., -PROBES:], after[..., -PROBES:], models[..., -PROBES:]):
        return None
    return sums if differ else _Sums(*(stack[0] for stack in sums))


def _calls(algorithm: Algorithm, form: Form, shapes: tuple, mixing: np.ndarray, exogenous: list) -> tuple | None:
    """How often a round takes gradients, and whether NumPy takes all of it; None if it must be of JAX's arrays."""
    made = []

    def grad(v, /, *, when: Any = True):
        made.append(when)
        return v

    leaves = [fixed(np.zeros((*shape, PROBES))) for shape in shapes]
    try:
        after = algorithm.round(form.join(leaves, exogenous), world_of(mixing, grad))
    except LACKING:
        return None
    return len(made), not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(after))


def _of_a_round(algorithm: Algorithm, form: Form, shapes: tuple, calls: int, mixing: Any, exogenous: list) -> tuple:
    """The leaves after a round, the points of its gradients, and the models before it, of unit vectors and probes."""
    agents, rows = len(mixing), sum(int(np.prod(shape)) for shape in shapes)
    units, (probes, slopes, offsets) = np.eye(rows + calls * agents), _probes(rows, agents)
    points = []

    def grad(v, /, *, when: Any = True) -> Any:
        begin = rows + len(points) * agents
        points.append(v)
        xp = namespace(v, when)
        of_probes = (v[:, None, -PROBES:] @ slopes)[:, 0] + offsets
        return xp.where(when, xp.concatenate([units[begin : begin + agents], of_probes], axis=1), 0.0)

    start = fixed(np.concatenate([units[:rows], probes], axis=1))
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    leaves = [part.reshape(*shape, start.shape[1]) for part, shape in zip(np.split(start, ends), shapes, strict=True)]
    state = form.join(leaves, exogenous)
    return form.split(algorithm.round(state, world_of(mixing, grad)))[0], points, algorithm.model(state)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _of_all_rounds(rest, form, shapes, calls, constants, mixing, stacks):
    algorithm = eqx.combine(constants, rest)
    return jax.vmap(lambda exogenous: _of_a_round(algorithm, form, shapes, calls, mixing, exogenous))(stacks)


def _probes(rows: int, agents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random states, and the slopes and offsets of random gradients."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, PROBES)), rng.normal(size=(agents, PROBES, PROBES)), rng.normal(size=(agents, PROBES))


def _is_all(sums: _Sums, points: np.ndarray, after: np.ndarray, models: np.ndarray) -> bool:
    """Whether the sums of the probes are what the round itself has made of them."""
    z, slopes, offsets = _probes(sums.models.shape[-1], sums.models.shape[-2])
    z = np.broadcast_to(z, (*after.shape[:-2], *z.shape))
    pairs = [(sums.models @ z, models)]
    for i in range(points.shape[-3]):
        v = sums.points[..., i, :, : z.shape[-2]] @ z
        pairs.append((v, points[..., i, :, :]))
        z = np.concatenate([z, (v[..., None, :] @ slopes)[..., 0, :] + offsets], axis=-2)
    pairs.append((sums.after @ z, after))
    return all(
        np.isfinite(made).all() and np.allclose(found, made, rtol=1e-9, atol=1e-9 * np.abs(made).max(initial=0))
        for found, made in pairs
    )
