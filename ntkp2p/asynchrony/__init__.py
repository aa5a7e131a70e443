"""Asynchronous agents: clocks, simulated events and staleness, all independent of the learning."""

from ntkp2p.asynchrony.clocks import Clock, Deterministic, Exponential, Trace, Weibull, load_trace
from ntkp2p.asynchrony.events import Ages, Events, Kind, Steps
from ntkp2p.asynchrony.gossip import AsynchronousGossip
from ntkp2p.asynchrony.staleness import ByAgent, Staleness, expected_staleness, gossip_rate_for, staleness
from ntkp2p.base.registry import Registry

#: The clocks that a name can ask for; the one place that knows the names.
CLOCKS: Registry[type[Clock]] = Registry(
    "clock", {"exponential": Exponential, "deterministic": Deterministic, "weibull": Weibull}, makes=Clock
)

__all__ = [
    "CLOCKS",
    "Ages",
    "AsynchronousGossip",
    "ByAgent",
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
