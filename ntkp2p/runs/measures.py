"""What is measured on a run, by the same formulas for predicted and for trained models.

Local loss L_q(θ): the mean of a loss of `ntkp2p.models.losses` over agent q's samples, for squared error
‖f(X_q; θ) − y_q‖² / (2 N_q); global loss L = (1/Q) Σ_q L_q, at each agent's model. The test loss is the mean over test
samples.

Over initialisations, outputs are Gaussian: each of the C by itself, with means m of its own and the same covariance V
of samples. A squared loss with weights w is then a quadratic form, whose mean and variance are exact (Isserlis, 1918),
with D = diag(w):

    ½ Σ_c [m_cᵀ D m_c + tr(D V)],    ¼ Σ_c [2 tr(D V D V) + 4 m_cᵀ D V D m_c].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkp2p.base.threads import one_thread
from ntkp2p.data import AgentData
from ntkp2p.models.losses import LOSSES

#: name → label of every variable that a trajectory can hold.
VARIABLES = {
    "local_loss": "local loss $L_q(\\theta_q)$",
    "global_loss": "global loss $L(\\theta_q)$",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "consensus_distance": "consensus distance $\\|\\theta_q - \\bar\\theta\\|$",
    "parameter_distance": "parameter distance $\\|\\theta_q - \\theta_0\\|$",
}
#: What has been sent and computed until then, where the network has parameters to send: name → label.
COUNTERS = {"messages": "messages sent", "bytes_sent": "bytes sent", "gradients": "gradients computed"}
#: The same of a steady state.
STEADY_VARIABLES = VARIABLES | {"bias": "distance from the minimiser $\\|\\theta_q - \\theta^*\\|$"}

#: Nodes of the quadrature for accuracies, which makes it exact to 1e-10 for ten classes.
NODES = 64

PerAgent = dict[str, Any]  # by variable, shape (*times, Q): arrays of NumPy or of JAX


def losses(
    outputs: Float[Array, "*times Q N C"], data: AgentData, loss: str, targets: Float[Array, "N C"] | None = None, /
) -> PerAgent:
    """Local and global loss from every agent's outputs on all training samples, in agent order.

    `targets` stand for those of the data, if given.
    """
    y = data.targets if targets is None else targets
    return losses_of(outputs, jnp.asarray(y, outputs.dtype), 1 / data.sizes[data.owner], data.owner, loss)


def losses_of(
    outputs: Float[Array, "*times Q N C"], targets: Any, weights: ArrayLike, owner: ArrayLike, loss: str, /
) -> PerAgent:
    """`losses` from the arrays of the data.

    Parameters
    ----------
    outputs, targets
        Of every agent on all training samples, shape (..., Q, N, C), and what they should be, shape (N, C).
    weights
        1/N_q of each sample's owner q, shape (N,).
    owner
        Whose each sample is, shape (N,).
    loss
        A name of `ntkp2p.models.losses.LOSSES`.
    """
    errors, agents = LOSSES[loss](outputs, targets), outputs.shape[-3]
    # Sample n weighs 1/N_q in the local loss of its owner q, and 1/(Q N_q) in every agent's global loss.
    weight = jnp.asarray(weights, outputs.dtype)
    own = jnp.asarray(owner)[None, :] == jnp.arange(agents)[:, None]
    return {
        # Chosen, not multiplied by zero: what overflows on others' data is not the agent's local loss.
        "local_loss": jnp.sum(jnp.where(own, errors * weight, 0), axis=-1),
        "global_loss": errors @ weight / agents,
    }


def test_measures(outputs: Float[Any, "*times Q T C"], data: AgentData, loss: str, /) -> PerAgent:
    """Loss, and accuracy where there are classes, from every agent's outputs on the test samples."""
    labels = None if data.classes is None else np.asarray(data.test_labels)
    return test_measures_of(outputs, np.asarray(data.test_targets, outputs.dtype), labels, loss)


def test_measures_of(outputs: Any, targets: Any, labels: Any, loss: str) -> PerAgent:
    """`test_measures` from the arrays of the data: NumPy's, computed without a compiler, or JAX's.

    Parameters
    ----------
    outputs, targets
        Of every agent on the test samples, shape (..., Q, T, C), and what they should be, shape (T, C).
    labels
        Their classes, shape (T,), or None.
    loss
        A name of `ntkp2p.models.losses.LOSSES`.
    """
    xp = outputs.__array_namespace__()
    measured = {"test_loss": LOSSES[loss](outputs, targets).mean(axis=-1)}
    if labels is not None:
        signs = outputs.shape[-1] == 1  # targets −1 and +1
        predicted = (outputs[..., 0] > 0).astype(int) if signs else xp.argmax(outputs, axis=-1)
        accuracy = xp.mean(predicted == labels, axis=-1, dtype=outputs.dtype)
        # Outputs that are no numbers any more are neither right nor wrong.
        measured["test_accuracy"] = xp.where(xp.isnan(outputs).any(axis=(-1, -2)), xp.nan, accuracy)
    return measured


class Factors(NamedTuple):
    """The measures of models that move in a few directions: each is a norm, or half the square of one.

    Where all agents' models are z_q(k) = Z_q c(k), with c the coefficients of a few directions, every squared norm is a
    quadratic form in c. It is kept as a factor R, ‖R c‖², which keeps all the digits, and not as a Gram matrix.

    Attributes
    ----------
    norms
        By measure: a factor (rows, p) for every agent; the measure is ‖R c‖.
    half_squares
        By measure: the same; the measure is ‖R c‖² / 2 + constant.
    constants
        Of the latter.
    """

    norms: dict[str, list[np.ndarray]]
    half_squares: dict[str, list[np.ndarray]]
    constants: dict[str, float]

    def __call__(self, c: Float[np.ndarray, "times p"], /) -> dict[str, Float[np.ndarray, "times Q"]]:
        """The measures for coefficients at many times."""
        with np.errstate(over="ignore", invalid="ignore"):  # an unstable system has overflowed
            found = {name: np.sqrt(_squares(factors, c)) for name, factors in self.norms.items()}
            for name, factors in self.half_squares.items():
                found[name] = _squares(factors, c) / 2 + self.constants[name]
        return found


def _squares(factors: list[np.ndarray], c: np.ndarray) -> np.ndarray:
    return np.stack([np.einsum("rt,rt->t", y, y) for y in (factor @ c.T for factor in factors)], axis=1)


def factors(
    directions: Float[np.ndarray, "p Q d"],
    matrix: Float[np.ndarray, "rows rank"],
    errors: Float[np.ndarray, "rows columns"],
    data: AgentData,
    /,
) -> Factors:
    """Distances, and the losses of squared error, of models in features that move in a few directions.

    Parameters
    ----------
    directions
        Of all agents' coordinates, from which the models are summed with coefficients c. The first one is where they
        start: its coefficient is 1.
    matrix, errors
        S and f₀ − y on the training samples, in agent order.
    """
    with one_thread():
        return _factors(directions, matrix, errors, data)


def _factors(directions, matrix, errors, data) -> Factors:
    z = np.moveaxis(directions, 0, -1)  # (Q, d, p)
    norms = {
        "consensus_distance": [_triangle(agent) for agent in z - z.mean(axis=0)],
        "parameter_distance": [_triangle(agent) for agent in z],
    }
    per_sample = len(matrix) // data.samples
    share = np.repeat(1 / data.sizes[data.owner], per_sample)
    owner = np.repeat(data.owner, per_sample)
    local = []
    for q, agent in enumerate(z):
        own = owner == q
        local.append(_residuals(matrix[own], errors[own], np.sqrt(share[own]), agent))
    weight = np.sqrt(share / data.agents)
    weighted, start, rest = weight[:, None] * matrix, weight[:, None] * errors, 0.0
    if len(matrix) > 2 * matrix.shape[1]:  # what all models leave over alike is a constant
        basis, weighted = np.linalg.qr(weighted)
        inside = basis.T @ start
        rest, start = float(np.sum((start - basis @ inside) ** 2)), inside
    shared = [_residuals(weighted, start, np.ones(len(weighted)), agent) for agent in z]
    return Factors(norms, {"local_loss": local, "global_loss": shared}, {"local_loss": 0.0, "global_loss": rest / 2})


def _residuals(matrix, errors, weight, z) -> np.ndarray:
    """A factor of ‖weight (errors + matrix z c)‖², in which the first coefficient is 1."""
    moved = np.tensordot(matrix, z.reshape(matrix.shape[1], -1, z.shape[-1]), 1)  # (rows, columns, p)
    moved[..., 0] += errors
    return _triangle((weight[:, None, None] * moved).reshape(-1, z.shape[-1]))


def _triangle(rows: np.ndarray) -> np.ndarray:
    """The triangular factor of a tall matrix; a wide one is its own."""
    return rows if len(rows) <= rows.shape[1] else np.asarray(np.linalg.qr(rows, mode="r"))


def gaussian_losses(
    mean: Float[Array, "*times Q N C"], covariance: Float[Array, "*times Q N N"], data: AgentData, /
) -> PerAgent:
    """`losses` of Gaussian outputs: their means, and their standard deviations as `local_loss_std` and so on."""
    weight = jnp.asarray(1 / data.sizes[data.owner])
    own = data.owner[None, :] == jnp.arange(data.agents)[:, None]
    errors = mean - jnp.asarray(data.targets)
    return _named("local_loss", _quadratic(errors, covariance, jnp.where(own, weight, 0))) | _named(
        "global_loss", _quadratic(errors, covariance, weight / data.agents)
    )


def gaussian_test_measures(
    mean: Float[Array, "*times Q T C"], covariance: Float[Array, "*times Q T T"], data: AgentData, /
) -> PerAgent:
    """`test_measures` of Gaussian outputs: means, and the standard deviation of the loss."""
    errors = mean - jnp.asarray(data.test_targets)
    measured = _named(
        "test_loss", _quadratic(errors, covariance, jnp.full(len(data.test_targets), 1 / errors.shape[-2]))
    )
    if data.classes is not None:
        variance = jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), 0)
        # What does not vary is decided by its mean, and a tie by lot.
        scaled = mean / jnp.sqrt(jnp.maximum(variance, np.finfo(float).tiny))[..., None]
        measured["test_accuracy"] = jnp.mean(_probability(scaled, jnp.asarray(data.test_labels)), axis=-1)
    return measured


def _named(name: str, moments: tuple[Array, Array]) -> PerAgent:
    return {name: moments[0], f"{name}_std": moments[1]}


def _quadratic(errors: Array, covariance: Array, weight: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of ½ Σ_n w_n ‖e_n‖², e Gaussian with mean `errors`, each output with V."""
    used = weight > 0  # chosen, as in `losses`
    e = jnp.where(used[..., None], errors, 0)
    v = jnp.where(used[..., :, None] & used[..., None, :], covariance, 0)
    weighted = weight[..., None] * e
    outputs = errors.shape[-1]
    mean = jnp.sum(weighted * e, axis=(-1, -2)) + outputs * jnp.sum(
        weight * jnp.diagonal(v, axis1=-2, axis2=-1), axis=-1
    )
    square = jnp.sum(weight[..., :, None] * weight[..., None, :] * v**2, axis=(-1, -2))
    mixed = jnp.sum(weighted * (v @ weighted), axis=(-1, -2))
    return mean / 2, jnp.sqrt(outputs * square / 2 + jnp.maximum(mixed, 0))


def _probability(scaled: Float[Array, "*times Q T C"], labels: Array) -> Float[Array, "*times Q T"]:
    """How likely the right class is predicted, outputs independent with these means and variance 1.

    Of several outputs the right one, c, must be the largest: E_u Π_{d≠c} Φ(m_c − m_d + u), u standard normal, by
    Gauss–Hermite quadrature.
    """
    if scaled.shape[-1] == 1:
        return jax.scipy.stats.norm.cdf(jnp.where(labels == 1, scaled[..., 0], -scaled[..., 0]))
    right = labels[:, None] == jnp.arange(scaled.shape[-1])
    margins = jnp.sum(jnp.where(right, scaled, 0), axis=-1, keepdims=True) - scaled
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)

    def add(total, node):  # one at a time: the arrays are large
        u, weight = node
        return total + weight * jnp.prod(jnp.where(right, 1, jax.scipy.stats.norm.cdf(margins + u)), axis=-1), None

    return jax.lax.scan(add, jnp.zeros(scaled.shape[:-1]), (nodes, weights / weights.sum()))[0]


def distances(x: Float[Array, "*times Q d"], start: Float[Array, " d"], /) -> PerAgent:
    """How far every agent's model is from the common start and from the agents' mean."""
    # As a product: XLA's mean over a leading axis took 0.15 s for ten models of 1.9 million parameters, this 0.03 s.
    agents = x.shape[-2]
    centred = jnp.matmul(jnp.eye(agents, dtype=x.dtype) - 1 / agents, x, precision="highest")
    return {
        "consensus_distance": _length(centred),
        "parameter_distance": _length(x - start),
    }


def _length(x: Array) -> Array:
    """A norm with slope 0 at 0, where it has none."""
    at_rest = jnp.all(x == 0, axis=-1)
    return jnp.where(at_rest, 0, jnp.linalg.norm(jnp.where(at_rest[..., None], 1, x), axis=-1))
