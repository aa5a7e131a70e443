"""Peer-to-peer algorithms. Each is written once, as a `round` that both training and prediction use."""

from ntkp2p.algorithms.algorithm import Algorithm, World
from ntkp2p.algorithms.compression import COMPRESSORS, Compressor, RandomK, TopK
from ntkp2p.algorithms.delayed import Delayed, Modifier
from ntkp2p.algorithms.diffusion import ATC, CTA, DGD
from ntkp2p.algorithms.local_sgd import LocalSGD
from ntkp2p.algorithms.push_sum import PushSum
from ntkp2p.algorithms.skew_compensation import SkewCompensatedSparsePush
from ntkp2p.algorithms.sparse_push import CHOCO, SparsePush
from ntkp2p.base.registry import Registry

#: The algorithms by name.
ALGORITHMS: Registry[type[Algorithm]] = Registry(
    "algorithm",
    {
        build.__name__: build
        for build in (DGD, CTA, ATC, LocalSGD, PushSum, SparsePush, SkewCompensatedSparsePush, CHOCO)
    },
    makes=Algorithm,
)

__all__ = [
    "ALGORITHMS",
    "ATC",
    "CHOCO",
    "COMPRESSORS",
    "CTA",
    "DGD",
    "Algorithm",
    "Compressor",
    "Delayed",
    "LocalSGD",
    "Modifier",
    "PushSum",
    "RandomK",
    "SkewCompensatedSparsePush",
    "SparsePush",
    "TopK",
    "World",
]
