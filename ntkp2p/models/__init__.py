"""What each agent trains, and the wide-network view of it: kernels and features."""

from collections.abc import Callable

from ntkp2p.models.cifar import resnet20, vgg11
from ntkp2p.models.networks import Model, Network, affine, cnn, mlp, prepare

__all__ = [
    "NETWORKS",
    "Model",
    "Network",
    "affine",
    "cnn",
    "mlp",
    "prepare",
    "resnet20",
    "vgg11",
]

NETWORKS: dict[str, Callable[..., Network]] = {
    network.__name__: network for network in (affine, mlp, cnn, resnet20, vgg11)
}
