"""User-defined mixing, a schedule and a source of events, wherever mixing is used."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest

import ntkp2p as p2p
from ntkp2p.asynchrony import Kind

Q, ROUNDS = 4, 40


class OneLink(p2p.Mixing):
    """In every round one pair, drawn at random, averages."""

    agents = Q

    def sample(self, rounds, seed, /):
        rng, matrices = np.random.default_rng(seed), np.tile(np.eye(Q), (rounds, 1, 1))
        for W in matrices:
            pair = rng.choice(Q, 2, replace=False)
            W[np.ix_(pair, pair)] = 0.5
        return p2p.schedules.sequence(matrices)


class TakingTurns(p2p.Mixing):
    """Agent after agent updates, and then averages with the one before."""

    agents = Q

    def sample(self, rounds, seed, /):
        k = np.arange(rounds)
        return p2p.Events(
            agents=Q,
            time=np.arange(1.0, rounds + 1),
            kind=np.where(k % 2, Kind.MESSAGE, Kind.UPDATE),
            agent=k // 2 % Q,
            peer=np.where(k % 2, (k // 2 - 1) % Q, -1),
            relay=np.full(rounds, -1),
            relays=0,
            weight=0.5,
            duration=float(rounds),
            silent=np.zeros(Q, int),
        )


def run(mixing, **changed):
    data = p2p.data.load("regression", samples=12, features=2).split(agents=Q, by="label")
    algorithm = p2p.LocalSGD(0.1) if isinstance(mixing, TakingTurns) else p2p.DGD(0.1)
    fields = {"model": p2p.models.affine(), "data": data, "algorithm": algorithm, "rounds": ROUNDS, "seed": 3}
    return p2p.Experiment(mixing=mixing, **fields | changed)


@pytest.mark.parametrize("mixing", [OneLink(), TakingTurns()], ids=["schedule", "events"])
def test_it_works_wherever_mixing_does(mixing):
    experiment = run(mixing)
    drawn = dataclasses.replace(experiment, mixing=experiment.topology)
    mixed, again = (run.describe()["mixing"].rpartition("crc32")[0] for run in (experiment, drawn))
    assert mixed == again
    predicted, trained = p2p.predict(experiment, time="rounds").dataset, p2p.train(experiment).dataset
    expected = p2p.predict(drawn, time="rounds").dataset
    for name in ("local_loss", "consensus_distance", "parameter_distance", "messages", "bytes_sent"):
        for found in (predicted, trained):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-12)
    sent = p2p.communication(experiment)
    np.testing.assert_array_equal(sent.messages, p2p.communication(drawn).messages)
    assert sent.messages.sum() == (2 * ROUNDS if isinstance(mixing, OneLink) else ROUNDS / 2)
    verdicts = ({about: v.answer for about, v in p2p.stability(run).verdicts.items()} for run in (experiment, drawn))
    assert next(verdicts) == next(verdicts)
    assert p2p.citation(experiment) == p2p.citation(drawn)
    losses = predicted["global_loss"].mean("agent").values
    target = np.sqrt(losses[-2] * losses[-1])
    assert p2p.rounds_to_loss(experiment, target) == p2p.rounds_to_loss(drawn, target)
    assert len(experiment.plot()) == 2
    plt.close("all")


def test_every_draw_of_a_training_has_mixing_of_its_own():
    first, again, other = (p2p.train(run(OneLink()), draw=draw).local_loss for draw in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_what_is_drawn_is_checked():
    class Alone(OneLink):
        def sample(self, rounds, seed, /):
            return p2p.schedules.periodic([np.eye(Q)])

    with pytest.raises(p2p.InputError, match="mixing falls into 4 components"):
        run(Alone())
    data = p2p.data.load("regression", samples=12, features=2).split(agents=3)
    with pytest.raises(p2p.InputError, match="4 × 4 but the data are split over 3 agents"):
        run(OneLink(), data=data)
    experiment = run(OneLink())
    with pytest.raises(p2p.InputError, match=r"give OneLink.sample\(rounds, seed\), or experiment.topology"):
        p2p.linear_system(experiment.algorithm, experiment.mixing, experiment.features(), experiment.data)
