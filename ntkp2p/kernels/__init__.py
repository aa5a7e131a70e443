"""A network linearised around its initialisation: tangent kernels and features."""

from ntkp2p.kernels.features import Features
from ntkp2p.kernels.infinite import infinite_features, infinite_kernels
from ntkp2p.kernels.ntk import TangentKernel, empirical_ntk

__all__ = [
    "Features",
    "TangentKernel",
    "empirical_ntk",
    "infinite_features",
    "infinite_kernels",
]
