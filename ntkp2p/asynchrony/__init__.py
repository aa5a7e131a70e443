"""Users on clocks of their own: what they do when, decided before anything is learnt."""

from ntkp2p.asynchrony.events import Events, Kind, Steps

__all__ = ["Events", "Kind", "Steps"]
