"""What a kernel costs, counted from the shapes of a network's layers."""

from itertools import pairwise
from typing import NamedTuple


class Layer(NamedTuple):
    """A weight matrix (n, m) with its bias, used at each of `places` rows of one sample."""

    n: int
    m: int
    places: int

    @property
    def size(self) -> int:
        return self.n * self.m + self.m


def mlp_layers(inputs: int, width: int, depth: int) -> list[Layer]:
    sizes = [inputs, *[width] * depth, 1]
    return [Layer(n, m, 1) for n, m in pairwise(sizes)]


def cnn_layers(height: int, width: int, colours: int, channels: int, depth: int) -> list[Layer]:
    places = height * width
    convolutions = [Layer(9 * c, channels, places) for c in [colours, *[channels] * (depth - 1)]]
    return [*convolutions, Layer(places * channels, 1, 1)]


def parameters(layers: list[Layer]) -> int:
    return sum(layer.size for layer in layers)


def layerwise_flops(layers: list[Layer], samples: int) -> dict[str, int]:
    """Matrix products of the layerwise formula for one output, the whole of the symmetric product.

    A weight used once contributes the Grams of its inputs and of its deltas; one used at many places contributes the
    Gram of its gradients, which are a product of their own.
    """
    once = [2 * layer.places * layer.n * layer.m for layer in layers]
    shared = [cost for cost, layer in zip(once, layers, strict=True) if layer.places > 1]
    entries = [layer.n + layer.m if layer.places == 1 else layer.size for layer in layers]
    return {
        "forward": samples * sum(once),
        "backward": samples * (sum(once[1:]) + sum(shared)),
        "gram": 2 * samples**2 * sum(entries),
    }


def activations(layers: list[Layer]) -> int:
    """Numbers that enter and leave one sample's products on the way forward."""
    return sum(layer.places * (layer.n + layer.m) for layer in layers)


def largest_activation(layers: list[Layer]) -> int:
    return max(layer.places * (layer.n + layer.m) for layer in layers)


def block(samples: int, per_sample: int, per_pair: int, memory: int) -> int:
    """Samples of a block such that a pair of blocks stays within `memory` bytes: halves of N until it does."""
    size = samples
    while size > 1 and (1 if size == samples else 2) * size * per_sample + size**2 * per_pair > memory:
        size = -(-size // 2)
    return size
