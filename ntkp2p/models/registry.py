"""The networks that can be chosen by name."""

from collections.abc import Callable

from ntkp2p.base.registry import Registry
from ntkp2p.models.cifar import resnet20, vgg11
from ntkp2p.models.networks import Network, affine, cnn, mlp

NETWORKS: Registry[Callable[..., Network]] = Registry(
    "model", {network.__name__: network for network in (affine, mlp, cnn, resnet20, vgg11)}
)
