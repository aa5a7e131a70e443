"""An independent account of what models reflect, with sets in place of version vectors."""

import pytest

from ntkp2p.asynchrony import Kind


def _replay(events):
    """After each event: its kind, agent, peer and relay, and of every agent the updates (agent, number) it reflects."""
    models = [set() for _ in range(events.agents)]
    made, way = [0] * events.agents, {}
    for kind, agent, peer, relay in zip(events.kind, events.agent, events.peer, events.relay, strict=True):
        match Kind(kind):
            case Kind.UPDATE:
                made[agent] += 1
                models[agent] = models[agent] | {(int(agent), made[agent])}
            case Kind.MESSAGE:
                models[agent] = models[agent] | models[peer]
            case Kind.EXCHANGE:
                models[agent] = models[peer] = models[agent] | models[peer]
            case Kind.SEND:
                assert relay not in way
                way[relay] = int(agent), int(peer), models[peer]
            case Kind.ARRIVE:
                to, sender, model = way.pop(relay)
                assert (to, sender) == (agent, peer)
                models[agent] = models[agent] | model
            case Kind.LOST if relay >= 0:
                assert way.pop(relay)[:2] == (agent, peer)
        yield Kind(kind), int(agent), int(peer), models, len(way)


@pytest.fixture(scope="session")
def replay():
    return _replay
