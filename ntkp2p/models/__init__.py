"""What each agent trains: networks, and the losses that they minimise."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ntkp2p.models.networks import Model, Network, affine, cnn, mlp, prepare

if TYPE_CHECKING:
    from ntkp2p.models.cifar import resnet20, vgg11
    from ntkp2p.models.registry import NETWORKS

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

#: Names that are imported when they are first used, and their modules: linear models need no large networks.
_LATER = {"NETWORKS": "registry", "resnet20": "cifar", "vgg11": "cifar"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
