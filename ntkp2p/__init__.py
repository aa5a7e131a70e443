"""ntkp2p: peer-to-peer training of wide neural networks, predicted in closed form and proved beside real training."""

from ntkp2p import data, devices, models
from ntkp2p.algorithms import (
    ATC,
    CHOCO,
    CTA,
    DGD,
    Algorithm,
    Compressor,
    Delayed,
    LocalSGD,
    PushSum,
    RandomK,
    SkewCompensatedSparsePush,
    SparsePush,
    TopK,
    World,
)
from ntkp2p.asynchrony import AsynchronousGossip, Events, clocks, expected_staleness, gossip_rate_for, staleness
from ntkp2p.citation import citation
from ntkp2p.communication import Communication, communication
from ntkp2p.compare import Comparison, compare
from ntkp2p.design import Objective, best_weights
from ntkp2p.dynamics import NoSteadyStateError, linear_system, solve, transition
from ntkp2p.experiment import Experiment
from ntkp2p.mixings import MixingComparison, compare_mixings
from ntkp2p.prediction import predict, predictions, steady_state
from ntkp2p.stability import StabilityReport, stability, stability_map
from ntkp2p.target import rounds_to_loss
from ntkp2p.timeliness import Timeliness, timeliness
from ntkp2p.topology import (
    best_constant,
    check_mixing,
    fastest_mixing,
    graphs,
    lazy,
    load_mixing,
    max_degree,
    metropolis,
    push_weights,
    schedules,
)
from ntkp2p.training import DivergedError, train
from ntkp2p.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "ATC",
    "CHOCO",
    "CTA",
    "DGD",
    "Algorithm",
    "AsynchronousGossip",
    "Communication",
    "Comparison",
    "Compressor",
    "Delayed",
    "DivergedError",
    "Events",
    "Experiment",
    "LocalSGD",
    "MixingComparison",
    "NoSteadyStateError",
    "Objective",
    "PushSum",
    "RandomK",
    "SkewCompensatedSparsePush",
    "SparsePush",
    "StabilityReport",
    "Timeliness",
    "TopK",
    "Trajectory",
    "World",
    "best_constant",
    "best_weights",
    "check_mixing",
    "citation",
    "clocks",
    "communication",
    "compare",
    "compare_mixings",
    "data",
    "devices",
    "expected_staleness",
    "fastest_mixing",
    "gossip_rate_for",
    "graphs",
    "lazy",
    "linear_system",
    "load_mixing",
    "max_degree",
    "metropolis",
    "models",
    "predict",
    "predictions",
    "push_weights",
    "rounds_to_loss",
    "schedules",
    "solve",
    "stability",
    "stability_map",
    "staleness",
    "steady_state",
    "timeliness",
    "train",
    "transition",
]
