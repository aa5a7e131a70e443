r"""ResNet-20 and VGG-11, the networks of many CIFAR-10 experiments, for images of other kinds too.

As usually trained they are normalised over the batch, so that the output for a sample depends on the others and there
is no tangent kernel. Here every sample is normalised by itself: over each of `GROUPS` groups of channels and all
pixels (group normalisation, Wu and He, 2018),

    h = σ_w W ⋆ x / √n,    y_c = γ_c (h_c − mean) / √(variance + ε) + β_c,

with n = 9 × input channels, the fan-in of a 3 × 3 convolution, and one scale γ_c and shift β_c for each channel. W is
standard normal as in the other networks, γ begins at 1 and β at 0. Convolutions have no bias of their own, as β does
its work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ntkp2p.base.checks import Count, plain
from ntkp2p.base.errors import InputError
from ntkp2p.models import threefry
from ntkp2p.models.networks import Network, Scaled, check_in_words, must_be_images, must_fit_memory, patches

#: Groups of channels that are normalised together; an odd number of channels is one group.
GROUPS = 2
#: ε, what is added to a group's variance.
EPSILON = 1e-5

#: Strides of ResNet-20's blocks, each of two convolutions; the channels double where the stride is 2.
STRIDES = (1, 1, 1, 2, 1, 1, 2, 1, 1)
#: Channels of VGG-11's convolutions, in multiples of the first's, in stages that each end with a pooling.
STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))


def resnet20(
    *,
    channels: Count = 16,
    outputs: Count | None = None,
    weight_std: float = math.sqrt(2),
    bias_std: float = 0.1,
) -> Network:
    """The residual network of 20 layers for small images, normalised sample by sample.

    A 3 × 3 convolution, three stages of three blocks of two such convolutions, the mean over all pixels and a dense
    readout, with ReLU. The second and the third stage halve the image with stride 2 and double the channels; their
    shortcuts have no parameters: every second pixel, with zeros for the new channels (option A). With the 16 channels
    of the paper, colour images and 10 outputs it has 269,722 parameters.

    Two things differ from the paper: the NTK parameterisation, and group normalisation, which has as many parameters
    as the paper's normalisation over the batch but lets no sample see another.

    Inputs are images of shape (N, height, width, channels), of any size; an odd height or width is halved upwards.

    Parameters
    ----------
    channels
        Channels of the first stage.
    outputs
        C; by default as many as the data have.
    weight_std, bias_std
        σ_w of every layer, which normalisation cancels in all but the readout, and σ_b of the readout.

    Raises
    ------
    ValueError
        For a size below 1, a negative σ, or inputs that are not images.

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    Y. Wu and K. He, "Group normalization", ECCV 2018.
    """
    channels, outputs = plain(channels), plain(outputs)
    scales = check_in_words(weight_std, bias_std, outputs, channels=channels)
    widths = [channels * factor for factor in accumulate(STRIDES, mul)]

    convolutions = (channels, *(width for width in widths for _ in range(2)))
    init = partial(_residual_layers, convolutions)
    return Network(f"resnet20(channels={channels}, {scales})", init, Residual(weight_std, bias_std), outputs)


def _residual_layers(convolutions: tuple[int, ...], key: Any, x: Any, outputs: int) -> PyTree:
    must_be_images("resnet20", x)
    return _draw(key, x, convolutions, convolutions[-1], outputs)


def vgg11(
    *,
    channels: Count = 64,
    outputs: Count | None = None,
    weight_std: float = math.sqrt(2),
    bias_std: float = 0.1,
) -> Network:
    """Configuration A of the VGG networks as used for small images, normalised sample by sample.

    Eight 3 × 3 convolutions of 64, 128, 256, 256, 512, 512, 512 and 512 channels with ReLU; the maximum over 2 × 2
    pixels after the first, second, fourth, sixth and eighth; and one dense readout in place of the paper's three dense
    layers. For 32 × 32 colour images and 10 outputs it has 9,228,362 parameters.

    Two things differ from the paper: the NTK parameterisation, and group normalisation before every ReLU, where the
    paper has none and CIFAR-10's versions normalise over the batch.

    Inputs are images of shape (N, height, width, channels), of 17 × 17 pixels or more: so many are left with a pixel
    to choose from at the fifth pooling. An odd height or width is halved upwards, its last row or column pooled by
    itself, 28 → 14 → 7 → 4 → 2 → 1. The readout sees all that is left: one pixel of images up to 32 × 32.

    Parameters
    ----------
    channels
        Channels of the first convolution; the others have 2, 4 and 8 times as many.
    outputs
        C; by default as many as the data have.
    weight_std, bias_std
        As for `resnet20`.

    Raises
    ------
    ValueError
        For a size below 1, a negative σ, inputs that are not images, or images that are too small.

    References
    ----------
    K. Simonyan and A. Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015,
    table 1, column A.
    Y. Wu and K. He, "Group normalization", ECCV 2018.
    """
    channels, outputs = plain(channels), plain(outputs)
    scales = check_in_words(weight_std, bias_std, outputs, channels=channels)

    init = partial(_pooled_layers, channels)
    return Network(f"vgg11(channels={channels}, {scales})", init, Pooled(weight_std, bias_std), outputs)


def _pooled_layers(channels: int, key: Any, x: Any, outputs: int) -> PyTree:
    must_be_images("vgg11", x)
    (height, width), least = x.shape[1:3], 2 ** (len(STAGES) - 1) + 1
    if min(height, width) < least:
        raise InputError(
            f"vgg11 halves images {len(STAGES)} times, which needs {least} × {least} pixels, "
            f"found {height} × {width}: use resnet20() or cnn()"
        )
    widths = [channels * factor for stage in STAGES for factor in stage]
    pixels = math.prod(math.ceil(size / 2 ** len(STAGES)) for size in (height, width))
    return _draw(key, x, widths, pixels * widths[-1], outputs)


@dataclass(frozen=True)
class Normalised(Scaled):
    """Convolutions that are normalised by groups of channels, each followed by a ReLU."""

    def unit(self, layer: PyTree, x: Any, stride: int = 1, /) -> Any:
        """One of them, without its ReLU."""
        return _normalised_convolution(self.weight_std, layer, x, stride)


@dataclass(frozen=True)
class Residual(Normalised):
    """A stem, blocks of two convolutions with a shortcut, and a dense readout of the pixels' mean."""

    def __call__(self, params: PyTree, x: Any, /) -> Any:
        """The outputs, shape (N, C)."""
        stem, *layers, readout = params
        x = jax.nn.relu(self.unit(stem, x))
        for first, second, stride in zip(layers[::2], layers[1::2], STRIDES, strict=True):
            x = jax.nn.relu(_shortcut(x, stride) + self.unit(second, jax.nn.relu(self.unit(first, x, stride))))
        return self.dense(readout, x.mean(axis=(1, 2)))


@dataclass(frozen=True)
class Pooled(Normalised):
    """Stages of convolutions, each ended by the maximum over 2 × 2 pixels, and a dense readout of all pixels."""

    def __call__(self, params: PyTree, x: Any, /) -> Any:
        """The outputs, shape (N, C)."""
        *convolutions, readout = params
        layers = iter(convolutions)
        for stage in STAGES:
            for layer in islice(layers, len(stage)):
                x = jax.nn.relu(self.unit(layer, x))
            x = _pooled(x)
        return self.dense(readout, x.reshape(len(x), -1))


def _draw(key: Array, x: Array, widths: Sequence[int], features: int, outputs: int) -> PyTree:
    """θ₀ of normalised convolutions of the given channels and a dense readout of so many features."""
    fan_ins = [9 * channels for channels in [x.shape[-1], *widths[:-1]]]
    shapes = [*zip(fan_ins, widths, strict=True), (features, outputs), (outputs,)]
    must_fit_memory(map(math.prod, shapes))
    ends = list(accumulate(map(math.prod, shapes)))
    numbers = threefry.normal(key, (ends[-1],))
    drawn = [numbers[end - math.prod(shape) : end] for end, shape in zip(ends, shapes, strict=True)]
    *weights, readout, bias = (part.reshape(shape) for part, shape in zip(drawn, shapes, strict=True))
    layers = [{"weight": w, "scale": np.ones(w.shape[1]), "shift": np.zeros(w.shape[1])} for w in weights]
    return [*layers, {"weight": readout, "bias": bias}]


# Compiled by itself, so that layers of one shape share the work where the whole network is not compiled.
@partial(jax.jit, static_argnums=(0, 3))
def _normalised_convolution(weight_std: float, layer: PyTree, x: Array, stride: int = 1) -> Array:
    weight = layer["weight"]
    h = (weight_std / math.sqrt(len(weight))) * (patches(x, stride) @ weight)
    count = math.gcd(GROUPS, h.shape[-1])
    groups = h.reshape(len(h), -1, count, h.shape[-1] // count)
    centred = groups - groups.mean(axis=(1, 3), keepdims=True)
    variance = jnp.mean(centred**2, axis=(1, 3), keepdims=True)
    normalised = centred * jax.lax.rsqrt(variance + EPSILON)
    return layer["scale"] * normalised.reshape(h.shape) + layer["shift"]


def _shortcut(x: Array, stride: int) -> Array:
    """Every stride-th pixel, with zeros for the channels that a block adds: option A of the paper."""
    added = (stride - 1) * x.shape[-1]
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, added)))


def _pooled(x: Array) -> Array:
    """The maximum over 2 × 2 pixels of what is nowhere negative."""
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))  # zeros, which change no maximum after a ReLU
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])
