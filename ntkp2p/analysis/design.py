r"""Design by differentiating the prediction: which weights, which step size make the predicted loss smallest?

A predicted loss is a differentiable function of the mixing matrix, the step size, the targets and the time; its
gradient costs about as much as the prediction. The best spectral gap is not always the best training run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.core import Tracer
from jaxtyping import Array, Float

from ntkp2p.base.checks import lookup
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.reports import html_table
from ntkp2p.dynamics import LinearSystem, linear_system, propagate
from ntkp2p.dynamics.krylov import Time, checked_time
from ntkp2p.kernels import Features
from ntkp2p.runs import measures
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.prediction import features_of


@dataclass(frozen=True, eq=False, repr=False)
class Objective:
    """A predicted measure of every agent as a function that `jax.grad` differentiates in reverse mode.

    Called with some of the quantities below, it takes the experiment's own for the others. Not for use inside
    `jax.jit`: how large a basis must be depends on the numbers. `value_and_grad` needs no flags of JAX; `jax.grad` of a
    function that calls this one needs `jax_enable_x64`.

    Parameters
    ----------
    experiment
        What is predicted, with one mixing matrix and squared error.
    variable
        One of `ntkp2p.runs.measures.VARIABLES` that is differentiable: a loss or a distance.
    time
        "rounds", or "flow", where the time has a derivative too.
    features
        As for `ntkp2p.predict`.
    rtol
        The accuracy of states and adjoints.

    Raises
    ------
    ValueError
        For an unknown or a discrete variable, a schedule, the flow of an algorithm that has none, or the average over
        initialisations.

    Attributes
    ----------
    system
        The linear system of the experiment.

    Examples
    --------
    Where all agents have the number 0, the loss after ten rounds is (1 − η)²⁰ of the initial one, and its derivative is
    −20/(1 − η) times as large:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> numbers = p2p.data.Dataset(name="numbers", inputs=np.zeros((3, 1)), targets=np.zeros((3, 1)))
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=numbers.split(3, by="label"),
    ...     mixing=p2p.metropolis(p2p.graphs.complete(3)),
    ...     algorithm=p2p.DGD(step_size=0.5),
    ...     rounds=10,
    ... )
    >>> loss, slopes = p2p.Objective(experiment).value_and_grad(step_size=0.5)
    >>> round(float(slopes["step_size"]) / loss, 6)
    -40.0
    """

    experiment: Experiment
    variable: str = "global_loss"
    time: Time = "rounds"
    features: Features | None = None
    rtol: float = 1e-10
    system: LinearSystem = field(init=False, repr=False)

    def __post_init__(self):
        experiment = self.experiment
        smooth = [name for name in measures.VARIABLES if name != "test_accuracy"]
        lookup(dict.fromkeys(smooth), self.variable, "variable")
        if self.variable == "test_loss" and not len(experiment.data.test_inputs):
            raise InputError("test_loss needs test samples: load data with test_samples=...")
        if experiment.loss != "squared":
            raise InputError(f"an objective is of squared error, which has a closed form, and not of {experiment.loss}")
        if not isinstance(experiment.mixing, np.ndarray):
            raise InputError("where the mixing changes over time there is no derivative yet: use one mixing matrix")
        features = features_of(experiment, self.features)
        if features.spread is not None:
            raise InputError("an objective is of one initialisation: give the network a finite width")
        object.__setattr__(self, "time", checked_time(self.time, has_flow=experiment.algorithm.has_flow))
        object.__setattr__(self, "features", features)
        system = linear_system(experiment.algorithm, experiment.mixing, features, experiment.data)
        object.__setattr__(self, "system", system)

    def __call__(
        self,
        *,
        mixing: Float[Array, "Q Q"] | np.ndarray | None = None,
        step_size: Any = None,
        targets: Float[Array, "N C"] | np.ndarray | None = None,
        at: Any = None,
    ) -> Float[Array, " Q"] | Float[np.ndarray, " Q"]:
        """The measure for every agent, shape (Q,): of NumPy, or of JAX inside a function that it differentiates.

        Parameters
        ----------
        mixing
            W, symmetric if the experiment's is: derivatives are then along symmetric matrices.
        step_size
            η.
        targets
            y on the training samples, in agent order, shape (N, C).
        at
            The round k, a whole number, by default the last; for time="flow" the flow time t, by default of that round.

        Raises
        ------
        ValueError
            For wrong shapes, a mixing matrix that is not symmetric where the experiment's is, a step size that is not
            positive, or a round that is not whole or is to be differentiated.
        TypeError
            Inside `jax.jit` or `jax.vmap`, or if JAX differentiates it without `jax_enable_x64`.
        """
        if self.system.varying or (mixing is not None and self.system.parameters["exogenous"]):
            raise InputError(
                f"the weights of {self.experiment.algorithm.name} follow from the mixing, and there is no derivative "
                "through them: take an algorithm without, ATC for instance, or differences of predict(...)"
                if self.system.parameters["exogenous"]
                else "where the mixing changes over time there is no derivative yet: use one mixing matrix"
            )
        self._must_fit(mixing=mixing, step_size=step_size, targets=targets, at=at)
        given = {"mixing": mixing, "step_size": step_size, "targets": targets, "at": at}
        if not any(isinstance(value, Tracer) for value in given.values()):
            with jax.enable_x64(True):
                return np.asarray(self._measure(**given))
        if jnp.result_type(float) != jnp.float64:
            raise InputTypeError(
                "JAX differentiates in float32, and a closed form needs float64: use objective.value_and_grad(...) "
                "or put it into `with jax.enable_x64(True):`"
            )
        return self._measure(**given)

    def _measure(self, *, mixing, step_size, targets, at) -> Array:
        experiment, features, system = self.experiment, self.features, self.system
        assert features is not None
        parameters = dict(system.parameters)
        if mixing is not None:
            mixing = jnp.asarray(mixing, float)
            parameters["mixing"] = (mixing + mixing.T) / 2 if system.symmetric else mixing
        eta = jnp.asarray(experiment.algorithm.step_size if step_size is None else step_size, float)
        parameters["algorithm"] = eqx.tree_at(lambda a: a.step_size, parameters["algorithm"], eta)
        y = jnp.asarray(experiment.data.targets if targets is None else targets, float)
        if targets is not None:
            parameters["targets"] = y[_places(experiment)] * (parameters["weights"] > 0)[..., None]
        state = propagate(system, self.time, self.rtol, parameters, self._rounds(at, eta), jnp.asarray(system.initial))
        tests, data = self.variable == "test_loss", experiment.data
        initial = features.initial_at(data.test_inputs) if tests else features.initial
        matrix = features.matrix_at(data.test_inputs) if tests else features.matrix
        targets = data.test_targets if tests else y
        weights = None if tests else 1 / data.sizes[data.owner]
        seen = (initial, matrix, targets, weights, None if tests else data.owner)
        return _measured(system.advance, self.variable, parameters, jnp.asarray(state), *seen)

    def __repr__(self) -> str:
        return f"Objective({', '.join(value for _, value in self._facts())})"

    def _repr_html_(self) -> str:
        return html_table(["Objective", ""], self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        run = self.experiment
        return [
            ("measure", f"{self.variable} of {run.agents} agents"),
            ("time", f"{self.time}, by default {run.rounds} rounds"),
            ("algorithm", f"{run.algorithm!r}"),
            ("system", f"{self.system.size} states"),
        ]

    @in_float64
    def value_and_grad(self, **at: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The agents' mean, and its derivatives with respect to what is given, as NumPy arrays by name.

        Parameters
        ----------
        at
            Some of the arguments of a call; a round (`at` for time="rounds") has no derivative and is left out.
        """
        fixed = {k: v for k, v in at.items() if k == "at" and self.time == "rounds"}
        self._must_fit(**dict.fromkeys(("mixing", "step_size", "targets", "at")) | at)
        free = {k: jnp.asarray(v, float) for k, v in at.items() if k not in fixed and v is not None}
        value, slopes = jax.value_and_grad(lambda free: jnp.mean(jnp.asarray(self(**free, **fixed))))(free)
        return float(value), {name: np.asarray(slope) for name, slope in slopes.items()}

    def _must_fit(self, *, mixing: Any, step_size: Any, targets: Any, at: Any) -> None:
        """Refuse shapes and numbers that this experiment cannot have; traced ones are known by their shape only."""
        experiment = self.experiment
        for name, value, like in (("mixing", mixing, experiment.mixing), ("targets", targets, experiment.data.targets)):
            if value is not None and np.shape(value) != like.shape:
                raise InputError(f"{name} has shape {np.shape(value)}, and {like.shape} is needed")
        if self.system.symmetric and mixing is not None and not isinstance(mixing, Tracer):
            W = np.asarray(mixing)
            if not np.allclose(W, W.T, rtol=0, atol=1e-9):
                raise InputError("mixing must be symmetric, as the experiment's is: start from one that is not")
        if step_size is not None and not isinstance(step_size, Tracer) and not 0 < step_size < np.inf:
            raise InputError(f"step_size must be a finite positive number, found {step_size}")
        if at is not None and not isinstance(at, Tracer) and not 0 <= at < np.inf:
            raise InputError(f"at must be a finite time ≥ 0, found {at}: steady_state is for t = ∞")

    def _rounds(self, at: Any, eta: Array) -> Array:
        if self.time == "flow":
            t = self.experiment.rounds * jax.lax.stop_gradient(eta) if at is None else at
            return jnp.asarray(t, float) / eta
        if isinstance(at, Tracer):
            raise InputError('a round has no derivative: take time="flow" for one with respect to the time')
        k = self.experiment.rounds if at is None else at
        if k != int(k):
            raise InputError(f'rounds are whole numbers, found {k!r}: use time="flow" in between')
        return jnp.asarray(k, float)


@partial(jax.jit, static_argnums=(0, 1))
def _measured(advance, variable, parameters, state, initial, matrix, targets, weights, owner) -> Array:
    """One variable of all agents in a state, compiled once for all mixings, step sizes and targets.

    No other one is computed: a distance of 0 has no derivative.
    """
    x = advance.model(parameters, state)
    if variable.endswith("distance"):
        return measures.distances(x, jnp.zeros(x.shape[-1]))[variable]
    _, rank, columns = advance.shape
    outputs = initial + (matrix @ x.reshape(len(x), rank, columns)).reshape(len(x), *initial.shape)
    if variable == "test_loss":
        return measures.test_measures_of(outputs, targets, None, "squared")[variable]
    return measures.losses_of(outputs, targets, weights, owner, "squared")[variable]


def _places(experiment: Experiment) -> np.ndarray:
    """Which sample stands where in the agents' blocks (Q, largest N_q)."""
    return experiment.data.per_agent(np.arange(experiment.data.samples))


def best_weights(
    experiment: Experiment,
    /,
    *,
    variable: str = "global_loss",
    at: int | None = None,
    features: Features | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Float[np.ndarray, "Q Q"]:
    """The weights of a graph that make a predicted measure, the agents' mean of it, smallest at one round.

    Over all symmetric doubly stochastic matrices on the graph of the experiment's mixing: W = I − Σ_e w_e L_e with
    weights w_e ≥ 0 on the edges and self-weights 1 − Σ_e w_e ≥ 0, by sequential quadratic programming (SLSQP) from the
    experiment's own, along the gradient of the prediction. A local optimum: the problem is not convex. Nothing is
    asked of later rounds, in which the run may even be unstable: see `stability`.

    Parameters
    ----------
    experiment
        With a symmetric mixing matrix, for instance `metropolis(graph)`.
    variable, features
        As for `Objective`.
    at
        The round; by default the last.
    progress
        Called with the number of improvements so far and the measure.

    Returns
    -------
    W
        Symmetric, doubly stochastic, zero where the experiment's is, and no worse than it.

    Raises
    ------
    ValueError
        If the experiment's mixing is not symmetric or has negative weights, or as for `Objective`.

    Examples
    --------
    From a common start, two rounds take the agents' differences to η (W + (1 − η) I) d, d being those of their numbers.
    So the best W has W d = −(1 − η) d:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> numbers = p2p.data.Dataset(name="numbers", inputs=np.zeros((3, 1)), targets=np.array([[0.0], [3.0], [6.0]]))
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=numbers.split(3, by="label"),
    ...     mixing=p2p.metropolis(p2p.graphs.complete(3)),
    ...     algorithm=p2p.DGD(step_size=0.5),
    ...     rounds=2,
    ... )
    >>> W = p2p.best_weights(experiment)
    >>> bool(np.allclose(W @ [-3.0, 0.0, 3.0], [1.5, 0.0, -1.5], atol=1e-3))
    True
    """
    objective = Objective(experiment, variable, features=features)
    start = experiment.mixing
    if not np.array_equal(start, start.T) or start.min() < 0:
        raise InputError(
            "best_weights starts from a symmetric mixing matrix of weights ≥ 0: for instance metropolis(graph)"
        )
    heads, tails = np.nonzero(np.triu(start, 1))
    if not len(heads):
        return start
    incidence = np.zeros((len(heads), len(start)))
    incidence[np.arange(len(heads)), heads] = incidence[np.arange(len(heads)), tails] = 1

    def mixing(weights: np.ndarray) -> np.ndarray:
        W = np.diag(1 - weights @ incidence)
        W[heads, tails] = W[tails, heads] = weights
        return W

    seen: list[tuple[float, np.ndarray]] = []

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = objective.value_and_grad(mixing=mixing(weights), **({} if at is None else {"at": at}))
        G = slopes["mixing"]
        slope = G[heads, tails] + G[tails, heads] - G[heads, heads] - G[tails, tails]
        if not seen or value < seen[-1][0]:
            seen.append((value, weights.copy()))
            if progress is not None:
                progress(len(seen), value)
        return float(np.log(value)), slope / value  # losses span decades

    scipy.optimize.minimize(
        loss,
        start[heads, tails],
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * len(heads),
        constraints={"type": "ineq", "fun": lambda w: 1 - w @ incidence, "jac": lambda w: -incidence.T},
        options={"maxiter": 200, "ftol": 1e-10},
    )
    # SLSQP may overstep its bounds by rounding, which a doubly stochastic matrix may not.
    weights = np.clip(seen[-1][1], 0, 1)
    return mixing(weights / max(1.0, (weights @ incidence).max()))
