r"""Algorithm × mixing × features → a linear system, by linearising the algorithm's own round.

    rounds         s_{k+1} = M s_k + b
    gradient flow  ds/dt = A s + b/η,   A = (M − I)/η,   t = η k

No linear system is derived by hand: the round that trains is handed the gradients of the linear model, which makes it
an affine map of the state, and its derivative is M. Where the mixing matrix changes over time, so do M and b.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkp2p.algorithms import Algorithm
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.reports import html_table
from ntkp2p.data import AgentData
from ntkp2p.dynamics.round import Affine, Round, assemble
from ntkp2p.dynamics.timetable import CONSTANT, Timetable, at_round
from ntkp2p.kernels import Features
from ntkp2p.topology.mixing import Mixing
from ntkp2p.topology.schedules import as_run_mixing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: Bytes that a block of states may take where many are advanced together.
BLOCK = 2**26


@dataclass(frozen=True, eq=False)
class LinearSystem:
    """s_{k+1} = M s_k + b, one step a round, and its flow ds/dt = (M − I) s/η + b/η.

    Attributes
    ----------
    advance
        (parameters, s) ↦ M s + b for s of shape (n,), hashable and affine in s, given the parameters of a round;
        `advance.model` likewise gives the agents' coordinates, (Q, rank·columns).
    parameters
        What M and b are made of.
    initial
        s_0, shape (n,).
    step_size
        η, flow time per round.
    symmetric
        Whether M is, as the algorithm declares.
    growth
        A bound of ‖M^k‖₂ over all k, and of ‖exp(A t)‖₂ over all t ≥ 0, as the algorithm declares; nan where none is
        known.
    curvature
        The largest eigenvalue of any agent's Hessian.
    sufficient_step_size
        The textbook's largest stable step size of the rounds, nan where there is none.
    timetable
        What of the stacks in the parameters each round has, where rounds differ.
    has_flow
        Whether the flow of (M − I)/η is the algorithm's, as it declares.
    """

    advance: "Round | Affine"
    parameters: PyTree
    initial: Float[np.ndarray, " n"]
    step_size: float
    symmetric: bool = False
    growth: float = float("nan")
    curvature: float = float("nan")
    sufficient_step_size: float = float("nan")
    timetable: Timetable = CONSTANT
    has_flow: bool = True

    @staticmethod
    @in_float64
    def of(
        matrix: np.ndarray,
        offset: np.ndarray,
        initial: np.ndarray,
        /,
        *,
        step_size: float = 1.0,
        symmetric: bool = False,
        growth: float = float("nan"),
    ) -> "LinearSystem":
        """A system that is given in numbers, a single agent's model being the state.

        Parameters
        ----------
        matrix
            M, shape (n, n).
        offset
            b, shape (n,).
        initial
            s_0, shape (n,).
        step_size
            η, flow time per round.
        symmetric
            Whether M is.
        growth
            A bound of ‖M^k‖₂ over all k, and of ‖exp(A t)‖₂ over all t ≥ 0, where one is known.

        Raises
        ------
        ValueError
            If the shapes do not agree, or a matrix that is declared symmetric is not.
        """
        if matrix.shape != (len(initial), len(initial)) or offset.shape != initial.shape:
            raise InputError(
                f"M, b and s_0 have shapes {matrix.shape}, {offset.shape}, {initial.shape}: (n, n), (n,), (n,)"
            )
        if symmetric and not np.allclose(matrix, matrix.T, rtol=1e-12, atol=1e-14):
            raise InputError("the matrix is declared symmetric, but it is not: leave symmetric out")
        return LinearSystem(
            advance=Affine(),
            parameters={"matrix": jnp.asarray(matrix, float), "offset": jnp.asarray(offset, float)},
            initial=np.asarray(initial, float),
            step_size=step_size,
            symmetric=symmetric,
            growth=growth,
        )

    def with_parameters(self, parameters: PyTree, initial: Float[np.ndarray, " n"], /) -> "LinearSystem":
        """The system of the same form and structure with other numbers, of which no bounds are known.

        Parameters
        ----------
        parameters
            In place of `parameters`, of the same structure.
        initial
            s_0, shape (n,).
        """
        unknown = dict.fromkeys(("growth", "curvature", "sufficient_step_size"), float("nan"))
        return replace(self, parameters=parameters, initial=initial, **unknown)

    @property
    def size(self) -> int:
        """n, the number of states."""
        return len(self.initial)

    @cached_property
    def rate(self) -> float:
        """About ‖M − I‖, the fastest rate of the flow, in units of rounds: at least 2."""
        # Events are averages of two.
        mixing = np.eye(1) if self.advance.asynchronous else self.parameters.get("mixing", np.eye(1))
        longest = np.linalg.norm(np.asarray(mixing), 2, axis=(-2, -1)).max()
        return float((1 + longest) * (1 + self.step_size * np.nan_to_num(self.curvature)))

    @property
    def varying(self) -> bool:
        """Whether rounds differ, so that no single M and b are there."""
        return len(self.timetable.order) > 0

    @property
    def over_clocks(self) -> bool:
        """Whether a round is the mean over what memoryless clocks may do next."""
        return self.advance.asynchronous and not self.varying

    @property
    def models_vary(self) -> bool:
        """Whether the same state stands for other models in another round, as push-sum's does."""
        return self.varying and bool(self.parameters["exogenous"])

    def shifted(self, k: int, /, initial: Float[np.ndarray, " n"] | None = None) -> "LinearSystem":
        """The system whose round 0 is this one's round k.

        Parameters
        ----------
        k
            The round that becomes round 0.
        initial
            The state before it, shape (n,); by default s_0.
        """
        initial = self.initial if initial is None else initial
        if not self.varying:
            return replace(self, initial=initial)
        order, begin, periodic = self.timetable
        rounds = k + np.arange(max(len(order) - k, len(order) - begin if periodic else 0))
        at = np.asarray(self.timetable.place(rounds))
        parameters = self.parameters | {"exogenous": [leaf[at] for leaf in self.parameters["exogenous"]]}
        if periodic and len(at) == 1:
            parameters = at_round(self.parameters, self.timetable, k)
            return replace(self, parameters=parameters, timetable=CONSTANT, initial=initial)
        timetable = Timetable(order[at], max(0, begin - k), periodic)
        return replace(self, parameters=parameters, timetable=timetable, initial=initial)

    @property
    def eventual(self) -> "LinearSystem":
        """The system from the round on from which it repeats itself, where it does."""
        return self.shifted(int(self.timetable.begin)) if self.timetable.periodic and self.timetable.begin else self

    @cached_property
    def offset(self) -> Float[np.ndarray, " n"]:
        """b."""
        return self._call(advanced, np.zeros(self.size))

    def apply(self, s: Float[np.ndarray, " n"], /) -> Float[np.ndarray, " n"]:
        """M s for a state `s` of shape (n,); never forms M."""
        return self._call(product, s)

    def transposed(self, s: Float[np.ndarray, " n"], /) -> Float[np.ndarray, " n"]:
        """Mᵀ s for a state `s` of shape (n,)."""
        return self._call(transposed_product, s)

    def model(self, s: Float[np.ndarray, " n"], /, *, round: int = 0) -> Float[np.ndarray, "Q d"]:
        """The agents' coordinates in one state, each agent's as one row.

        Parameters
        ----------
        s
            Shape (n,).
        round
            The state is the one before this round.

        Returns
        -------
        ndarray, shape (Q, d)
        """
        return self.models(s[None], np.array([round]))[0]

    @in_float64
    def models(self, states: Float[np.ndarray, "times n"], rounds: np.ndarray, /) -> Float[np.ndarray, "times Q d"]:
        """The agents' coordinates in several states.

        Parameters
        ----------
        states
            Shape (times, n).
        rounds
            The round that each of them comes before, shape (times,).

        Returns
        -------
        ndarray, shape (times, Q, d)
        """
        return np.asarray(models_of(self.advance, self.parameters, self.timetable, states, rounds))

    def directions(self, basis: Float[np.ndarray, "p n"], /) -> Float[np.ndarray, "p Q d"]:
        """How the agents' coordinates change along the rows of `basis`, shape (p, n), where no round differs."""
        return self._call(_directions, basis)

    @in_float64
    def over(
        self, states: Float[np.ndarray, "p n"], begin: int, count: int, /, *, driven: bool = True
    ) -> Float[np.ndarray, "p n"]:
        """States taken over `count` rounds from round `begin` on, in one compiled loop.

        Parameters
        ----------
        states
            Shape (p, n).
        begin, count
            From which round on, and over how many.
        driven
            Whether b takes part.
        """
        start = jnp.asarray(states, float)
        return np.asarray(_over(self.advance, driven, self.parameters, self.timetable, start, begin, count))

    @in_float64
    def matrix(self) -> Float[np.ndarray, "n n"]:
        """M as a matrix: for small systems."""
        step = max(1, BLOCK // (8 * self.size))
        columns = [
            np.asarray(_products(self.advance, self.parameters, np.eye(self.size)[first : first + step]))
            for first in range(0, self.size, step)
        ]
        return np.concatenate(columns).T

    @in_float64
    def _call(self, compiled: Callable, s: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(self.advance, self.parameters, np.asarray(s, float)))

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """The eigenvalues of M, or of a period's map, in the unit disc, into `ax` or new axes; returns them.

        Of more than 1,500 states, or 600 if M is not symmetric, the extreme ones, by iteration.
        """
        from ntkp2p.dynamics import plots

        return plots.system(self, ax=ax)

    def __repr__(self) -> str:
        return f"LinearSystem({', '.join(value for _, value in self._facts())})"

    def _repr_html_(self) -> str:
        return html_table(["LinearSystem", ""], self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("states", f"{self.size} states")]
        if isinstance(self.advance, Round):
            algorithm = eqx.combine(self.parameters["algorithm"], self.advance.algorithm)
            facts += [("agents", f"{self.advance.shape[0]} agents"), ("algorithm", _in_words(algorithm))]
        else:
            facts.append(("step size", f"step_size={self.step_size:g}"))
        rounds = f"{len(self.timetable.order)} different rounds" if self.varying else "rounds all alike"
        facts.append(("time", rounds + (" and flow" if self.has_flow else ", no flow")))
        return [*facts, ("matrix", "symmetric" if self.symmetric else "nonsymmetric")]


@in_float64
def linear_system(
    algorithm: Algorithm,
    mixing: Mixing | np.ndarray,
    features: Features,
    data: AgentData,
    /,
    *,
    columns: Float[np.ndarray, "rows _"] | None = None,
    rounds: int | None = None,
) -> LinearSystem:
    """The system that an algorithm makes of linear models in features.

    Parameters
    ----------
    algorithm
        Any algorithm whose round is affine in the state when the gradients are.
    mixing
        W, shape (Q, Q), or a schedule of such matrices. Or events, of which each is a round; or memoryless clocks, of
        which the system is that of the mean over all their events: then a round is one event, and the flow is over
        wall-clock time.
    features
        S and f₀ on the data's inputs in agent order.
    data
        The agents' data.
    columns
        Initial errors in place of f₀ − y, one column for each output that is followed: any number of them where the
        outputs share a kernel, for then each column goes its own way.
    rounds
        The number of rounds that matter, for an algorithm whose own weights may converge slowly.

    Returns
    -------
    LinearSystem
        M and b of one round, and s_0.

    Raises
    ------
    ValueError
        If the round is not affine: it can be trained, not predicted.

    Examples
    --------
    Three agents have one number each, 0, 3 and 6, and learn a constant. Every Hessian is then 1, and M = W − η I:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> numbers = p2p.data.Dataset(name="numbers", inputs=np.zeros((3, 1)), targets=np.array([[0.0], [3.0], [6.0]]))
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=numbers.split(3, by="label"),
    ...     mixing=p2p.metropolis(p2p.graphs.complete(3)),
    ...     algorithm=p2p.DGD(step_size=0.5),
    ...     rounds=40,
    ... )
    >>> run = experiment
    >>> system = p2p.linear_system(run.algorithm, run.mixing, run.features(), run.data)
    >>> system
    LinearSystem(3 states, 3 agents, DGD(step_size=0.5), rounds all alike and flow, symmetric)
    >>> bool(np.allclose(system.matrix(), run.mixing - 0.5 * np.eye(3)))
    True
    """
    mixing = as_run_mixing(mixing)
    advance, parameters, timetable = assemble(algorithm, mixing, features, data, columns=columns, rounds=rounds)
    initial = np.asarray(advance.start(algorithm))
    blocks = np.asarray(parameters["matrix"])
    gram = blocks @ blocks.swapaxes(1, 2) / data.sizes[:, None, None]
    curvature = float(np.linalg.eigvalsh(gram).max())
    varying = len(timetable.order) > 0
    _must_be_affine(algorithm, advance, parameters, timetable, len(initial))
    matrices = [] if mixing.asynchronous else np.asarray(parameters["mixing"]).reshape(-1, data.agents, data.agents)
    growths = [algorithm.growth(W, curvature) for W in matrices]
    if varying or mixing.asynchronous:
        # Rounds that are no longer powers of one M need one norm that each of them contracts.
        growths = [max(growths) if growths and all(growth == 1 for growth in growths) else float("nan")]
    return LinearSystem(
        advance=advance,
        parameters=parameters,
        initial=initial,
        step_size=mixing.length(float(algorithm.step_size)),
        symmetric=not (mixing.asynchronous or varying) and algorithm.is_symmetric(matrices[0]),
        growth=growths[0],
        curvature=curvature,
        sufficient_step_size=float(
            np.min([algorithm.sufficient_step_size(W, curvature) for W in matrices] or [np.nan])
        ),
        has_flow=mixing.has_flow(algorithm),
        timetable=timetable,
    )


def _in_words(algorithm: Algorithm) -> str:
    """With its constants, which are arrays here, as numbers."""
    return repr(jax.tree.map(lambda constant: float(constant) if eqx.is_array(constant) else constant, algorithm))


def linear(advance: Callable, parameters: PyTree, s: Array) -> Array:
    """M s, the derivative of the round."""
    return jax.jvp(partial(advance, parameters), (jnp.zeros_like(s),), (s,))[1]


# Compiled once for each kind of system, not for each system: the parameters are arguments.
advanced = jax.jit(lambda advance, parameters, s: advance(parameters, s), static_argnums=0)
product = jax.jit(linear, static_argnums=0)
_exogenous = jax.jit(lambda advance, parameters, s: advance.both(parameters, s)[1], static_argnums=0)
_products = jax.jit(lambda a, p, states: jax.vmap(partial(linear, a, p))(states), static_argnums=0)


@partial(jax.jit, static_argnums=(0, 1))
def _over(
    advance: Callable, driven: bool, parameters: PyTree, timetable: Timetable, states: Array, begin: Any, count: Any
) -> Array:
    def one_round(k, states):
        now = at_round(parameters, timetable, k)
        return jax.vmap(partial(advance, now) if driven else partial(linear, advance, now))(states)

    return jax.lax.fori_loop(begin, begin + count, one_round, states)


@partial(jax.jit, static_argnums=0)
def models_of(advance: Callable, parameters: PyTree, timetable: Timetable, states: Array, rounds: Array) -> Array:
    """The agents' coordinates in states before rounds."""

    def model(s, k):
        return advance.model(at_round(parameters, timetable, k), s)

    return jax.vmap(model)(states, rounds)


@partial(jax.jit, static_argnums=0)
def _directions(advance: Callable, parameters: PyTree, basis: Array) -> Array:
    model = partial(advance.model, parameters)
    return jax.vmap(lambda s: jax.jvp(model, (jnp.zeros_like(s),), (s,))[1])(basis)


@partial(jax.jit, static_argnums=0)
def transposed_product(advance: Callable, parameters: PyTree, s: Array) -> Array:
    """Mᵀ s."""
    return jax.vjp(partial(advance, parameters), jnp.zeros_like(s))[1](s)[0]


def must_have_closed_form(algorithm: Algorithm, /) -> None:
    """Refuse an algorithm that says itself that its rounds of linear models are not affine."""
    if algorithm.nonlinear:
        raise InputError(f"{algorithm.name} has no closed form, for {algorithm.nonlinear}: train it")


def _must_be_affine(algorithm: Algorithm, advance: Round, parameters: PyTree, timetable: Timetable, size: int) -> None:
    must_have_closed_form(algorithm)
    probe = np.random.default_rng(0).normal(size=size)
    for k in parameters["mixing"].different if advance.asynchronous else [0]:
        here = at_round(parameters, timetable, k)
        start, found = (np.asarray(advanced(advance, here, s)) for s in (np.zeros(size), probe))
        expected = start + np.asarray(product(advance, here, probe))
        affine = np.isfinite([found, expected]).all() and np.allclose(
            found, expected, rtol=1e-6, atol=1e-9 * float(np.abs(expected).max())
        )
        if affine and here["exogenous"]:  # which may not depend on the models
            affine = all(map(np.array_equal, *(_exogenous(advance, here, s) for s in (np.zeros(size), probe))))
        if not affine:
            raise InputError(
                f"one round of {algorithm.name} is not affine in the state, so it has no closed form: train it"
            )
