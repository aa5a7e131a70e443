"""Peer-to-peer algorithms, each written once as the `round` that both trains and predicts."""

from ntkp2p.algorithms.algorithm import Algorithm, World
from ntkp2p.algorithms.diffusion import ATC, CTA, DGD
from ntkp2p.algorithms.modifiers import Delayed, Modifier

ALGORITHMS: dict[str, type[Algorithm]] = {"DGD": DGD, "CTA": CTA, "ATC": ATC}

__all__ = ["ALGORITHMS", "ATC", "CTA", "DGD", "Algorithm", "Delayed", "Modifier", "World"]
