"""What is measured on a run, by the same formulas for predicted and for trained models.

Local loss L_q(θ): the mean of a loss of `ntkp2p.losses` over agent q's samples, for squared error
‖f(X_q; θ) − y_q‖² / (2 N_q); global loss L = (1/Q) Σ_q L_q, at each agent's model. The test loss is the mean over test
samples.

Over initialisations, outputs are Gaussian: each of the C by itself, with means m of its own and the same covariance V
of samples. A squared loss with weights w is then a quadratic form, whose mean and variance are exact (Isserlis, 1918),
with D = diag(w):

    ½ Σ_c [m_cᵀ D m_c + tr(D V)],    ¼ Σ_c [2 tr(D V D V) + 4 m_cᵀ D V D m_c].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ntkp2p.data import AgentData
from ntkp2p.losses import LOSSES

#: name → label of every variable that a trajectory can hold.
VARIABLES = {
    "local_loss": "local loss $L_q(\\theta_q)$",
    "global_loss": "global loss $L(\\theta_q)$",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "consensus_distance": "consensus distance $\\|\\theta_q - \\bar\\theta\\|$",
    "parameter_distance": "parameter distance $\\|\\theta_q - \\theta_0\\|$",
}

#: Nodes of the quadrature for accuracies, which makes it exact to 1e-10 for ten classes.
NODES = 64

PerAgent = dict[str, Shaped[Array, "*times Q"]]


def losses(outputs: Float[Array, "*times Q N C"], data: AgentData, loss: str, /) -> PerAgent:
    """Local and global loss from every agent's outputs on all training samples, in agent order."""
    errors = LOSSES[loss](outputs, jnp.asarray(data.targets, outputs.dtype))
    # Sample n weighs 1/N_q in the local loss of its owner q, and 1/(Q N_q) in everybody's global loss.
    weight = jnp.asarray(1 / data.sizes[data.owner], outputs.dtype)
    own = data.owner[None, :] == jnp.arange(data.agents)[:, None]
    return {
        # Chosen, not multiplied by zero: what overflows on others' data is not the agent's local loss.
        "local_loss": jnp.sum(jnp.where(own, errors * weight, 0), axis=-1),
        "global_loss": errors @ weight / data.agents,
    }


def test_measures(outputs: Float[Array, "*times Q T C"], data: AgentData, loss: str, /) -> PerAgent:
    """Loss, and accuracy where there are classes, from every agent's outputs on the test samples."""
    errors = LOSSES[loss](outputs, jnp.asarray(data.test_targets, outputs.dtype))
    measured = {"test_loss": jnp.mean(errors, axis=-1)}
    if data.classes is not None:
        signs = outputs.shape[-1] == 1  # targets −1 and +1
        predicted = (outputs[..., 0] > 0).astype(int) if signs else jnp.argmax(outputs, axis=-1)
        measured["test_accuracy"] = jnp.mean(predicted == data.test_labels, axis=-1, dtype=outputs.dtype)
    return measured


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
        "consensus_distance": jnp.linalg.norm(centred, axis=-1),
        "parameter_distance": jnp.linalg.norm(x - start, axis=-1),
    }
