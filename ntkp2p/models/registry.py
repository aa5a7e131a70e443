"""The networks that can be chosen by name."""

from collections.abc import Callable

from ntkp2p.models.cifar import resnet20, vgg11
from ntkp2p.models.networks import Network, affine, cnn, mlp

NETWORKS: dict[str, Callable[..., Network]] = {
    network.__name__: network for network in (affine, mlp, cnn, resnet20, vgg11)
}
