"""An independent account of what models reflect, with sets in place of version vectors."""

import pytest

from ntkp2p.asynchrony import Kind


def _replay(events):
    """After each event: its kind, user, peer and relay, and of every user the updates (user, number) it reflects."""
    models = [set() for _ in range(events.users)]
    made, way = [0] * events.users, {}
    for kind, user, peer, relay in zip(events.kind, events.user, events.peer, events.relay, strict=True):
        match Kind(kind):
            case Kind.UPDATE:
                made[user] += 1
                models[user] = models[user] | {(int(user), made[user])}
            case Kind.MESSAGE:
                models[user] = models[user] | models[peer]
            case Kind.EXCHANGE:
                models[user] = models[peer] = models[user] | models[peer]
            case Kind.SEND:
                assert relay not in way
                way[relay] = int(user), int(peer), models[peer]
            case Kind.ARRIVE:
                to, sender, model = way.pop(relay)
                assert (to, sender) == (user, peer)
                models[user] = models[user] | model
            case Kind.LOST if relay >= 0:
                assert way.pop(relay)[:2] == (user, peer)
        yield Kind(kind), int(user), int(peer), models, len(way)


@pytest.fixture(scope="session")
def replay():
    return _replay
