"""What share of a message a compressor lets through, measured on the first messages of a run.

A mean-field prediction takes C(v) for δ v. Before anything is trained, the first messages are known: a gradient step of
every agent from the common start.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntkp2p.algorithms import Algorithm, Compressor
from ntkp2p.algorithms.compression import compressors_of, with_compressors
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.models import Network, threefry
from ntkp2p.models.losses import LOSSES
from ntkp2p.runs.experiment import Experiment


def drawn_by(algorithm: Algorithm, /) -> str:
    """The compressors over whose draws a prediction is the mean, by name; empty if there are none."""
    return ", ".join(sorted({type(by).__name__ for by in compressors_of(algorithm) if by.unbiased}))


@in_float64
def with_measured_shares(experiment: Experiment, /) -> Experiment:
    """The same run, where every compressor whose share δ is not known has that of the agents' first messages.

    δ = Σ ⟨v, C(v)⟩ / Σ ‖v‖² over agents and layers, v being an agent's gradient at θ₀.
    """
    if not any(_is_unknown(by) for by in compressors_of(experiment.algorithm)):
        return experiment
    if isinstance(experiment.model, Network) and experiment.model.infinite:
        raise InputError("at infinite width no message is there to measure δ on: give it, TopK(keep, share=...)")
    layers, gradients = experiment.layers, _first_gradients(experiment)

    def measured(by):
        return by.with_share(float(_share_sent(by, layers, gradients))) if _is_unknown(by) else by

    return replace(experiment, algorithm=with_compressors(experiment.algorithm, measured))


def _is_unknown(by: Compressor) -> bool:
    return by.share is None and not by.unbiased


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
def _share_sent(by: Compressor, layers: tuple[int, ...], messages: Array) -> Array:
    """Σ ⟨v, C(v)⟩ / Σ ‖v‖², by one draw for each agent where something is drawn."""
    keys = jax.random.split(threefry.key_of(threefry.seeded(0)), len(messages))
    sent = jax.vmap(lambda v, key: by.by_layer(v, layers, key))(messages, keys)
    return jnp.sum(messages * sent) / jnp.sum(messages**2)
