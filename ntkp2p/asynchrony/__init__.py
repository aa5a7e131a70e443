"""Users on clocks of their own: what they do when, decided before anything is learnt."""

from ntkp2p.asynchrony.clocks import Clock, Deterministic, Exponential, Trace, Weibull, load_trace
from ntkp2p.asynchrony.events import Ages, Events, Kind, Steps
from ntkp2p.asynchrony.gossip import AsynchronousGossip
from ntkp2p.asynchrony.staleness import ByUser, Staleness, expected_staleness, gossip_rate_for, staleness

#: The clocks that a name can ask for; the one place that knows the names.
CLOCKS: dict[str, type[Clock]] = {"exponential": Exponential, "deterministic": Deterministic, "weibull": Weibull}

__all__ = [
    "CLOCKS",
    "Ages",
    "AsynchronousGossip",
    "ByUser",
    "Clock",
    "Deterministic",
    "Events",
    "Exponential",
    "Kind",
    "Staleness",
    "Steps",
    "Trace",
    "Weibull",
    "expected_staleness",
    "gossip_rate_for",
    "load_trace",
    "staleness",
]
