"""What share of a message its largest entries make up, measured on the first messages of a run.

A mean-field prediction takes C(v) for δ v. Before anything is trained, the first messages are known: a gradient step of
every agent from the common start.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntkp2p.algorithms import Algorithm, Compressor, TopK
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.models import Network, threefry
from ntkp2p.models.losses import LOSSES
from ntkp2p.runs.experiment import Experiment


def compressors_of(algorithm: Algorithm, /) -> list[Compressor]:
    """The compressors that an algorithm has."""
    leaves = jax.tree.leaves(algorithm, is_leaf=lambda part: isinstance(part, Compressor))
    return [part for part in leaves if isinstance(part, Compressor)]


def with_measured_shares(experiment: Experiment, /) -> Experiment:
    """The same run, where every `TopK` without a share δ has that of the agents' first messages.

    δ = Σ ‖C(v)‖² / Σ ‖v‖² over agents and layers, v being an agent's gradient at θ₀.
    """
    if not any(isinstance(c, TopK) and c.share is None for c in compressors_of(experiment.algorithm)):
        return experiment
    if isinstance(experiment.model, Network) and experiment.model.infinite:
        raise InputError("at infinite width no message is there to measure δ on: give it, TopK(keep, share=...)")
    layers, gradients = experiment.layers, _first_gradients(experiment)

    def measured(part):
        if not (isinstance(part, TopK) and part.share is None):
            return part
        return TopK(part.keep, share=float(_share_sent(part, layers, gradients)))

    algorithm = jax.tree.map(measured, experiment.algorithm, is_leaf=lambda part: isinstance(part, Compressor))
    return replace(experiment, algorithm=algorithm)


@in_float64
def _first_gradients(experiment: Experiment) -> Array:
    """Every agent's gradient at θ₀, shape (Q, P)."""
    data = experiment.data
    theta, apply = experiment.initialise().flat()
    held = (data.inputs, data.targets, 1 / data.sizes[data.owner])
    return _gradients(apply, experiment.loss, theta, tuple(data.per_agent(array) for array in held))


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(apply: Callable, loss: str, theta: Array, held: tuple) -> Array:
    def gradient(own):
        inputs, targets, weights = own
        return jax.grad(lambda theta: weights @ LOSSES[loss](apply(theta, inputs), targets))(theta)

    return jax.lax.map(gradient, held)


@partial(jax.jit, static_argnums=(0, 1))
def _share_sent(by: TopK, layers: tuple[int, ...], messages: Array) -> Array:
    """Σ ‖C(v)‖² / Σ ‖v‖²; what is sent of the largest entries is not drawn, so that any key does."""
    key = threefry.key_of(threefry.seeded(0))
    sent = jax.vmap(lambda v: by.by_layer(v, layers, key))(messages)
    return jnp.sum(sent**2) / jnp.sum(messages**2)
