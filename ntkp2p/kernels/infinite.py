r"""Infinite width: the kernels that a network's outputs and their gradients tend to, and features made of them.

As its hidden layers grow, a network in NTK parameterisation is, at initialisation, a Gaussian process with mean zero,
and its tangent kernel is the same for every initialisation:

    Σ(x, x') = E f₀(x) f₀(x')      (NNGP: Neal, 1996; Lee et al., 2018)
    Θ(x, x') = E ∇f₀(x) · ∇f₀(x')  (NTK: Jacot, Gabriel and Hongler, 2018)

for each of the C outputs, which are independent. Both come from neural-tangents (Novak et al., 2020). It was last
released for an older JAX, asks it for names that have moved since, and imports TensorFlow for a part that is not needed
here. So it is lent those names while it is imported, and nothing that was lent stays behind.
"""

import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.core
import jax.interpreters.ad
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.extend import core
from jaxtyping import Float

from ntkp2p.base.devices import free_memory
from ntkp2p.base.errors import InputError
from ntkp2p.base.imports import needed
from ntkp2p.base.precision import in_float64
from ntkp2p.kernels.features import Features, Map, Spread, by_columns, pivoted_cholesky
from ntkp2p.kernels.ntk import must_fit
from ntkp2p.models.networks import ANALYTIC, Architecture, Network, must_be_images

#: Relative to the largest diagonal entry: the library's kernels of equal inputs are right to 5e-9, and pivots below
#: that are its rounding errors.
RTOL = 1e-8


class Kernels(NamedTuple):
    """Both kernels of infinite width between two sets of inputs, for each output, shape (N1, N2).

    Attributes
    ----------
    nngp
        Σ, the covariance of the outputs at initialisation.
    ntk
        Θ, the tangent kernel.
    """

    nngp: Float[np.ndarray, "N1 N2"]
    ntk: Float[np.ndarray, "N1 N2"]


@in_float64
def infinite_kernels(
    network: Network, x1: np.ndarray, x2: np.ndarray | None = None, /, *, memory: int = 2**30
) -> Kernels:
    """The kernels of a network of infinite width between two sets of inputs.

    Parameters
    ----------
    network
        `affine`, `mlp` or `cnn` of this package. Its own width does not matter: these are the limit's kernels.
    x1, x2
        Inputs, shapes (N1, ...) and (N2, ...); x2 defaults to x1.
    memory
        Bytes that the rows computed at a time may take: a convolution has a kernel for every pixel.

    Returns
    -------
    kernels
        float64.

    Raises
    ------
    ValueError
        If the network's kernels are not known or do not fit into memory, or its inputs are not images where they must
        be.
    ImportError
        Without neural-tangents.
    """
    architecture = _architecture(network)
    if architecture.convolutional:
        must_be_images("cnn", x1)
        pixels = x1.shape[1] * x1.shape[2]
    else:
        x1, x2, pixels = x1.reshape(len(x1), -1), None if x2 is None else x2.reshape(len(x2), -1), 1
    must_fit((len(x1), len(x1 if x2 is None else x2)), 2 * 8, free_memory() // 2)
    kernels = _kernel_function(architecture)
    columns = jnp.asarray(x1 if x2 is None else x2, jnp.float64)
    rows = max(1, memory // (8 * 8 * pixels * len(columns)))  # about eight arrays of that size at once
    if rows >= len(x1):
        both = kernels(jnp.asarray(x1, jnp.float64), None if x2 is None else columns)
        return Kernels(*map(np.asarray, both))
    blocks = [kernels(jnp.asarray(x1[i : i + rows], jnp.float64), columns) for i in range(0, len(x1), rows)]
    return Kernels(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


@in_float64
def infinite_features(network: Network, x: np.ndarray, outputs: int, /, *, rtol: float = RTOL) -> Features:
    """The features of a network of infinite width: those of its tangent kernel, around f₀ = 0 ± its spread.

    Given to `predict(experiment, features=...)`, they stand for the average over initialisations of whatever width,
    affine models included.

    Parameters
    ----------
    network
        As in `infinite_kernels`.
    x
        The training inputs, shape (N, ...), in the agents' order: `experiment.data.inputs`.
    outputs
        C, how many the data ask for.
    rtol
        Where the Cholesky factors of both kernels stop, relative to the largest diagonal entry.

    Raises
    ------
    ValueError, ImportError
        As `infinite_kernels`; also if the network was made for another number of outputs.
    """
    if isinstance(network, Network) and network.outputs not in (None, outputs):
        raise InputError(
            f"{network} has {network.outputs} outputs, the data have targets of {outputs}: leave outputs out"
        )
    kernels = infinite_kernels(network, x)
    matrix, matrix_at, error = _factor(network, "ntk", kernels, x, rtol)
    factor, factor_at, left_out = _factor(network, "nngp", kernels, x, rtol)

    def spread_at(new):
        own = factor_at(new)
        return own, infinite_kernels(network, new).nngp - own @ own.T

    return Features(
        matrix=matrix,
        columns=outputs,
        initial=np.zeros((len(x), outputs)),
        error=error,
        initial_at=lambda new: np.zeros((len(new), outputs)),
        matrix_at=matrix_at,
        parameters=None,
        spread=Spread(inputs=x, factor=factor, error=left_out, at=spread_at),
    )


@functools.cache
def neural_tangents() -> types.ModuleType:
    """The library neural-tangents, on a JAX that is newer than it.

    `jax` and `sys.modules` are left as they were, so an independent import of neural-tangents gets
    what they would have got before; if they have done so already, theirs is used.

    Raises
    ------
    ImportError
        If it is not installed, or asks for more than it is lent.
    """
    if sys.modules.get("neural_tangents") is not None:
        return sys.modules["neural_tangents"]
    with needed("infinite width", "infinite"), _restored_names(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("neural_tangents")


@contextmanager
def _restored_names() -> Iterator[None]:
    """What neural-tangents asks of JAX, there for the duration."""
    util: Any = types.ModuleType("jax.util")
    util.safe_map = lambda function, *rows: list(map(function, *rows))
    util.safe_zip = lambda *rows: list(zip(*rows, strict=True))
    lent = [(jax.core, name, getattr(core, name)) for name in ("Jaxpr", "JaxprEqn", "Literal", "Var", "Primitive")]
    lent.append((jax.interpreters.ad, "zeros_like_p", core.Primitive("zeros_like")))
    # The attributes that exist, without asking JAX for those that it only explains the loss of.
    owned = [(module, name, vars(module)[name]) for module, name, _ in lent if name in vars(module)]
    modules = {"jax.util": util, "neural_tangents.experimental": types.ModuleType("neural_tangents.experimental")}

    def visiting():
        return {n: m for n, m in sys.modules.items() if n == "jax.util" or n.partition(".")[0] == "neural_tangents"}

    before = visiting()
    sys.modules |= modules
    for module, name, value in lent:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, _ in lent:
            delattr(module, name)
        for module, name, value in owned:
            setattr(module, name, value)
        for name in visiting():
            del sys.modules[name]
        sys.modules |= before


def _architecture(network: Network) -> Architecture:
    architecture = network.architecture if isinstance(network, Network) else None
    if architecture is None:
        raise InputError(f"the kernels of {network!r} at infinite width are not known: use affine(), mlp() or cnn()")
    if architecture.activation not in ANALYTIC:
        raise InputError(
            f"{architecture.activation} has no analytic kernel at infinite width: use {' or '.join(ANALYTIC)}"
        )
    return architecture


@functools.cache
def _kernel_function(architecture: Architecture) -> Callable:
    """(x1, x2 or None) ↦ (nngp, ntk)."""
    stax, a = neural_tangents().stax, architecture
    activation = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}[a.activation]

    def hidden():
        if a.convolutional:
            return stax.Conv(1, (3, 3), padding="SAME", W_std=a.weight_std, b_std=a.bias_std)
        return stax.Dense(1, a.weight_std, a.bias_std)

    layers = [layer for _ in range(a.depth) for layer in (hidden(), activation())]
    flatten = [stax.Flatten()] if a.convolutional else []
    _, _, kernel = stax.serial(*layers, *flatten, stax.Dense(1, a.weight_std, a.bias_std))
    return jax.jit(lambda x1, x2: tuple(kernel(x1, x2, ("nngp", "ntk"))))


def _factor(network: Network, name: str, kernels: Kernels, x: np.ndarray, rtol: float) -> tuple[np.ndarray, Map, float]:
    """The factor S of one of the kernels on x, new inputs ↦ K(new, x) S⁻ᵀ, and the share of the trace left out."""
    factor, pivots, error = pivoted_cholesky(*by_columns(getattr(kernels, name)), rtol=rtol)
    triangle, chosen = factor[pivots], x[pivots]

    def at(new):
        between = getattr(infinite_kernels(network, new, chosen), name)
        return scipy.linalg.solve_triangular(triangle, between.T, lower=True).T

    return factor, at, error
