"""What each agent trains, and the wide-network view of it: kernels and features."""

from collections.abc import Callable

from ntkp2p.models.cifar import resnet20, vgg11
from ntkp2p.models.features import Features
from ntkp2p.models.infinite import infinite_features, infinite_kernels
from ntkp2p.models.networks import Model, Network, affine, cnn, mlp, prepare
from ntkp2p.models.ntk import TangentKernel, empirical_ntk

__all__ = [
    "NETWORKS",
    "Features",
    "Model",
    "Network",
    "TangentKernel",
    "affine",
    "cnn",
    "empirical_ntk",
    "infinite_features",
    "infinite_kernels",
    "mlp",
    "prepare",
    "resnet20",
    "vgg11",
]

NETWORKS: dict[str, Callable[..., Network]] = {
    network.__name__: network for network in (affine, mlp, cnn, resnet20, vgg11)
}
