"""Networks in NTK parameterisation: affine, fully connected, convolutional; and user-defined networks.

A layer with fan-in n computes σ_w W x / √n + σ_b b from standard normal W and b (Jacot, Gabriel and Hongler, 2018),
so that the tangent kernel has a limit as the width grows and one step size serves every width.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ntkp2p.base.checks import Count, plain, real, whole
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.registry import Registry
from ntkp2p.models import threefry

ACTIVATIONS: Registry[Callable[[Array], Array]] = Registry(
    "activation",
    {
        "relu": jax.nn.relu,
        "erf": jax.scipy.special.erf,
        "tanh": jnp.tanh,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    },
)

#: The largest sizes, standard deviation and number of parameters (8 bytes each) that a network may have.
MOST_UNITS, MOST_LAYERS, LARGEST_STD, MOST_PARAMETERS = 10**7, 1000, 1e6, 2**33
#: The activations whose kernels at infinite width are known in closed form.
ANALYTIC = ("relu", "erf", "gelu")


@dataclass(frozen=True)
class Architecture:
    """What the kernels of a network depend on when its width grows without bound.

    Attributes
    ----------
    limit
        The network of infinite width in words: networks that differ in width only have the same.
    infinite
        Whether the width is infinite.
    convolutional
        3 × 3 convolutions in place of dense hidden layers.
    depth, activation, weight_std, bias_std
        As in `mlp` and `cnn`; an affine model has depth 0.
    """

    limit: str
    infinite: bool
    convolutional: bool
    depth: int
    activation: str
    weight_std: float
    bias_std: float


@dataclass(frozen=True)
class Network:
    """A network whose number of outputs is that of the data.

    Attributes
    ----------
    name
        What messages and files call it.
    init
        `init(key, x, outputs) -> params`, for a batch x of inputs.
    apply
        `apply(params, x) -> (N, C)`, batched over the first axis of x.
    outputs
        C, or None: as many as the data ask for.
    outputs_share_kernel
        True if the exact tangent kernel of C outputs is one N × N kernel times the identity.
    architecture
        What its kernels at infinite width depend on; None where these are not known.
    """

    name: str
    init: Callable[..., PyTree]
    apply: Callable[[PyTree, Array], Array]
    outputs: int | None = None
    outputs_share_kernel: bool = False
    architecture: Architecture | None = None

    @property
    def infinite(self) -> bool:
        """Whether it has infinite width: it can be predicted, and has no parameters to train."""
        return self.architecture is not None and self.architecture.infinite

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Model:
    """A network at its initialisation θ₀: what training starts from and what prediction linearises around.

    Attributes
    ----------
    apply
        `apply(params, x) -> (N, C)`.
    params
        θ₀ as a pytree, float64.
    one_output
        θ₀ of the same network with one output, where the exact kernel of C outputs is the kernel of that one times
        the identity; else None.
    """

    apply: Callable[[PyTree, Array], Array]
    params: PyTree
    one_output: PyTree | None = None

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(self.layers)

    @property
    def layers(self) -> tuple[int, ...]:
        """The sizes of the parameter arrays, in the order in which `flat` has them."""
        return tuple(leaf.size for leaf in jax.tree.leaves(self.params))

    def flat(self) -> "tuple[np.ndarray, Flat]":
        """θ₀ as a vector (P,), and apply as a function of such a vector."""
        leaves, structure = jax.tree.flatten(self.params)
        theta = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves])
        return theta, Flat(self.apply, structure, tuple(leaf.shape for leaf in leaves))

    @in_float64
    def astype(self, dtype: str, /) -> "Model":
        """The same model with its parameters in `dtype`."""
        return replace(self, params=jax.tree.map(lambda p: p.astype(dtype), self.params))


@dataclass(frozen=True)
class Flat:
    """A network as a function of its parameters as a vector; equal ones are compiled once.

    Attributes
    ----------
    apply
        `apply(params, x) -> (N, C)`.
    structure, shapes
        Of `params`, and of its leaves.
    """

    apply: Callable[[PyTree, Array], Array]
    structure: Any
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, theta: Any, x: Any, /) -> Any:
        """The outputs, shape (N, C), for θ of shape (P,)."""
        return self.at(self.parts(theta), x)

    def parts(self, theta: Any, /) -> list[Any]:
        """The leaves of `params`, which follow one another in `theta`, θ of shape (P,)."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        return [theta[end - math.prod(s) : end].reshape(s) for end, s in zip(ends, self.shapes, strict=True)]

    def at(self, parts: list[Any], x: Any, /) -> Any:
        """The outputs, shape (N, C).

        Parameters
        ----------
        parts
            The leaves of `params`.
        x
            Inputs, shape (N, ...).
        """
        return self.apply(jax.tree.unflatten(self.structure, parts), x)


def affine(*, outputs: Count | None = None, weight_std: float = 1.0, bias_std: float = 1.0) -> Network:
    """The affine classifier f(x) = σ_w W x / √d + σ_b b: the model whose linearisation is exact.

    Parameters
    ----------
    outputs
        C; by default as many as the data have.
    weight_std, bias_std
        σ_w and σ_b.

    Returns
    -------
    Network
        Of which `prepare` draws the parameters.

    Examples
    --------
    One weight for each input, and a bias:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> p2p.models.prepare(p2p.models.affine(), np.ones((4, 3)), 1).size
    4
    """
    outputs = plain(outputs)
    name = f"affine({check_in_words(weight_std, bias_std, outputs)})"
    architecture = Architecture(name, False, False, 0, "relu", weight_std, bias_std)
    return _dense_network(name, [], outputs, architecture)


def mlp(
    *,
    width: Count = 1024,
    depth: Count = 2,
    activation: str = "relu",
    outputs: Count | None = None,
    weight_std: float = math.sqrt(2),
    bias_std: float = 0.1,
) -> Network:
    """A fully connected network of `depth` hidden layers; inputs of any shape are flattened.

    Parameters
    ----------
    width
        Units of every hidden layer. `math.inf`: the limit of infinite width, whose prediction is the mean over
        initialisations with the spread between them; it needs neural-tangents, and cannot be trained.
    depth
        Hidden layers, at least 1.
    activation
        "relu", "erf", "tanh" or "gelu".
    outputs
        C; by default as many as the data have.
    weight_std, bias_std
        σ_w and σ_b of every layer.

    Returns
    -------
    Network
        Of which `prepare` draws the parameters.

    Raises
    ------
    ValueError
        For an unknown activation, a size below 1, or infinite width with an activation that has no analytic kernel.

    Examples
    --------
    Two inputs, eight hidden units and one output take 2 · 8 + 8 + 8 + 1 parameters:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> p2p.models.prepare(p2p.models.mlp(width=8, depth=1), np.ones((4, 2)), 1).size
    33
    """
    width, depth, outputs = map(plain, (width, depth, outputs))
    name, architecture = _describe("mlp", "width", width, depth, activation, outputs, weight_std, bias_std)
    if architecture.infinite:
        return _infinite_network(name, outputs, architecture, remedy="mlp(width=1024)")
    return _dense_network(name, [width] * depth, outputs, architecture)


def cnn(
    *,
    channels: Count = 32,
    depth: Count = 2,
    activation: str = "relu",
    outputs: Count | None = None,
    weight_std: float = math.sqrt(2),
    bias_std: float = 0.1,
) -> Network:
    """`depth` 3 × 3 convolutions of `channels` channels with zero padding, flattened into a dense readout.

    Inputs are images of shape (N, height, width, channels).

    Parameters
    ----------
    channels
        Of every hidden layer. `math.inf`: the limit of infinite width, as for `mlp`.
    depth
        Hidden layers, at least 1.
    activation, outputs, weight_std, bias_std
        As for `mlp`.

    Returns
    -------
    Network
        Of which `prepare` draws the parameters.

    Raises
    ------
    ValueError
        For what `mlp` refuses, or inputs that are not images.
    """
    channels, depth, outputs = map(plain, (channels, depth, outputs))
    name, architecture = _describe("cnn", "channels", channels, depth, activation, outputs, weight_std, bias_std)
    if architecture.infinite:
        return _infinite_network(name, outputs, architecture, remedy="cnn(channels=64)")

    apply = Convolutional(weight_std, bias_std, activation)
    return Network(name, partial(_convolutional_layers, channels, depth), apply, outputs, architecture=architecture)


@in_float64
def prepare(network: Any, x: np.ndarray, outputs: int, *, seed: int = 0) -> Model:
    """Draw θ₀: the one initialisation that all agents share.

    Parameters
    ----------
    network
        One of ours, a pair (init, apply), or any object with such attributes, a Flax module for one: `init(key, x)`
        makes the parameters for a batch of inputs and `apply(params, x)` returns outputs of shape (N, C).
    x
        Inputs, shape (N, ...).
    outputs
        C, the outputs that the data ask for.
    seed
        The seed of θ₀.

    Raises
    ------
    TypeError
        If `network` is none of those.
    ValueError
        If its outputs are not of shape (N, C) or depend on each other's inputs, or its parameters are not real numbers
        or come with other state.
    """
    key, batch = threefry.key_of(threefry.seeded(seed)), jax.device_put(np.asarray(x[:2], float))
    one_output = None
    if isinstance(network, Network):
        apply, params = network.apply, network.init(key, batch, outputs if network.outputs is None else network.outputs)
        if network.outputs_share_kernel:
            one_output = network.init(key, batch, 1)
    else:
        init, apply = _pair(network)
        params = init(key, batch)
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = ", ".join(str(name) for name in params if name != "params")
        raise InputError(
            f"the module keeps {others} beside its parameters, which would be trained with them: use layers without "
            "such state, LayerNorm in place of BatchNorm for instance"
        )
    leaves = jax.tree.leaves(params)
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        raise InputError(
            "every parameter must be a real floating-point array: keep counters and statistics out of `init`"
        )
    params = jax.tree.map(lambda p: jax.device_put(np.asarray(p, np.float64)), params)
    found = applied.eval_shape(apply, params, batch).shape
    if found != (len(batch), outputs):
        raise InputError(
            f"the network maps {len(batch)} inputs to outputs of shape {found}, the data have targets of shape "
            f"({len(batch)}, {outputs}): give it {outputs} output(s), shape (N, {outputs})"
        )
    inputs = np.asarray(x[:2], float)
    together = outputs_of(apply, params, inputs)
    alone = np.concatenate([outputs_of(apply, params, one[None]) for one in inputs])
    if not np.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(np.abs(alone).max())):
        raise InputError(
            "the network's output for a sample depends on the other samples of its batch, so that it has no tangent "
            "kernel: replace batch normalisation by layer or group normalisation"
        )
    return Model(apply, params, one_output)


#: A network's outputs: compiled once for all networks that are equal, with parameters as arguments.
applied = jax.jit(lambda apply, params, x: apply(params, x), static_argnums=0)


#: Up to `MANY` inputs are filled up to a multiple of `FEW`.
MANY, FEW = 512, 64


def outputs_of(apply: Callable, params: PyTree, x: np.ndarray) -> np.ndarray:
    """A network's outputs on N inputs, shape (N, C).

    Few inputs are filled up with copies of the last, so that few shapes are compiled.
    """
    idle = -len(x) % FEW if 0 < len(x) <= MANY else 0
    filled = np.concatenate([x, np.repeat(x[-1:], idle, axis=0)]) if idle else x
    return np.asarray(applied(apply, params, filled))[: len(x)]


def _pair(network: Any) -> tuple[Callable, Callable]:
    if isinstance(network, tuple):
        if len(network) == 2 and all(map(callable, network)):
            return network
    elif callable(getattr(network, "init", None)) and callable(getattr(network, "apply", None)):
        return network.init, network.apply
    raise InputTypeError(
        f"a model is one of ntkp2p.models, a pair (init, apply) or an object with both, found "
        f"{type(network).__name__}: for instance model=(init, apply)"
    )


def must_be_images(network: str, x: Any) -> None:
    """Refuse inputs that a network of convolutions cannot take."""
    if x.ndim != 4:
        raise InputError(
            f"{network} needs images of shape (N, height, width, channels), found {x.shape}: "
            "reshape the inputs or use mlp()"
        )


def _dense_network(name: str, hidden: list, outputs: int | None, architecture: Architecture) -> Network:
    init = partial(_dense_layers, tuple(hidden))  # not a closure, so that networks can be pickled
    apply = FullyConnected(architecture.weight_std, architecture.bias_std, architecture.activation)
    return Network(name, init, apply, outputs, outputs_share_kernel=not hidden, architecture=architecture)


def _dense_layers(hidden: tuple[int, ...], key: Any, x: Any, outputs: int) -> list[dict[str, Any]]:
    sizes = [math.prod(x.shape[1:]), *hidden, outputs]
    return _normal_layers(key, sizes[:-1], sizes[1:])


def _convolutional_layers(channels: int, depth: int, key: Any, x: Any, outputs: int) -> list[dict[str, Any]]:
    must_be_images("cnn", x)
    fan_ins = [9 * c for c in [x.shape[-1], *[channels] * (depth - 1)]]
    sizes = [*fan_ins, x.shape[1] * x.shape[2] * channels]
    return _normal_layers(key, sizes, [*[channels] * depth, outputs])


def _infinite_network(name: str, outputs: int | None, architecture: Architecture, *, remedy: str) -> Network:
    refuse = partial(_refuse_to_train, name, remedy)
    return Network(name, refuse, refuse, outputs, architecture=architecture)


def _refuse_to_train(name: str, remedy: str, *_: Any) -> Any:
    raise InputError(f"{name} has no parameters and can only be predicted: give it a size to train, {remedy}")


@dataclass(frozen=True)
class Scaled:
    """A function (params, x) ↦ outputs with the scales of its layers; equal ones are compiled once.

    Attributes
    ----------
    weight_std, bias_std
        σ_w and σ_b of the dense layers.
    """

    weight_std: float
    bias_std: float

    def dense(self, layer: PyTree, x: Any, /) -> Any:
        """σ_w W x / √n + σ_b b."""
        weight, bias = layer["weight"], layer["bias"]
        return (self.weight_std / math.sqrt(len(weight))) * (x @ weight) + self.bias_std * bias


@dataclass(frozen=True)
class FullyConnected(Scaled):
    """Dense layers with an activation between them."""

    activation: str

    def __call__(self, params: PyTree, x: Any, /) -> Any:
        """The outputs, shape (N, C)."""
        *layers, readout = params
        x = x.reshape(len(x), -1)
        for layer in layers:
            x = ACTIVATIONS[self.activation](self.dense(layer, x))
        return self.dense(readout, x)


@dataclass(frozen=True)
class Convolutional(Scaled):
    """3 × 3 convolutions, each with an activation, and a dense readout of all pixels."""

    activation: str

    def __call__(self, params: PyTree, x: Any, /) -> Any:
        """The outputs, shape (N, C)."""
        *convolutions, readout = params
        for layer in convolutions:
            x = ACTIVATIONS[self.activation](self.dense(layer, patches(x)))
        return self.dense(readout, x.reshape(len(x), -1))


def must_fit_memory(sizes: Iterable[int], /) -> None:
    """Refuse layers with too many parameters, before any of them is drawn."""
    if (total := sum(map(int, sizes))) > MOST_PARAMETERS:
        raise InputError(f"the network has {total:.2g} parameters, more than {MOST_PARAMETERS:.2g}: make it smaller")


def _normal_layers(key: Any, fan_ins: Sequence[Any], fan_outs: Sequence[Any]) -> list[dict[str, Any]]:
    def layer(key, n, m):
        weight, bias = threefry.split(key, 2)
        return {"weight": threefry.normal(weight, (n, m)), "bias": threefry.normal(bias, (m,))}

    must_fit_memory((n + 1) * m for n, m in zip(fan_ins, fan_outs, strict=True))
    keys = threefry.split(key, len(fan_ins))
    return [layer(*args) for args in zip(keys, fan_ins, fan_outs, strict=True)]


def patches(x, stride: int = 1) -> Array:
    """(N, h, w, c) → (N, ⌈h/stride⌉, ⌈w/stride⌉, 9c): the 3 × 3 neighbourhood of every stride-th pixel."""
    # A convolution as shifted copies and one matrix product: gradients of many agents, each with filters of its own,
    # are then products too, where a convolution primitive becomes a grouped one, an order of magnitude slower on CPUs.
    # Columns before rows: six copies to compile, not nine.
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    beside = jnp.concatenate([padded[:, :, j : j + w : stride] for j in range(3)], axis=-1)
    return jnp.concatenate([beside[:, i : i + h : stride] for i in range(3)], axis=-1)


def _describe(
    kind: str, size_name: str, size: Any, depth: Any, activation: str, outputs: Any, weight_std: Any, bias_std: Any
) -> tuple[str, Architecture]:
    """Check a network's description; its name, and what its kernels depend on."""
    infinite = isinstance(size, float) and size == math.inf
    scales = check_in_words(weight_std, bias_std, outputs, **({} if infinite else {size_name: size}), depth=depth)
    ACTIVATIONS[activation]  # refuses an unknown one
    if infinite and activation not in ANALYTIC:
        raise InputError(
            f"{activation} has no analytic kernel at infinite width: use {' or '.join(ANALYTIC)}, "
            f"or give a {size_name} such as {kind}({size_name}=1024)"
        )

    def named(size):
        return f"{kind}({size_name}={size}, depth={depth}, {activation}, {scales})"

    limit = named(math.inf)
    return named(size), Architecture(limit, infinite, kind == "cnn", depth, activation, weight_std, bias_std)


def check_in_words(weight_std: Any, bias_std: Any, outputs: Any, **sizes: Any) -> str:
    """Refuse what is not a size or a standard deviation; the scales in words."""
    for name, size in (sizes if outputs is None else sizes | {"outputs": outputs}).items():
        whole(size, name, least=1, most=MOST_LAYERS if name == "depth" else MOST_UNITS)
    for name, std in {"weight_std": weight_std, "bias_std": bias_std}.items():
        if real(std, name, least=0) > LARGEST_STD:
            raise InputError(f"{name} must be at most {LARGEST_STD:g}, found {std:g}: values near 1 are usual")
    return f"σ_w={weight_std:.4g}, σ_b={bias_std:.4g}"


def is_hashable(value: Any) -> bool:
    """Whether what has been compiled for it can be found again."""
    try:
        hash(value)
    except TypeError:
        return False
    return True
