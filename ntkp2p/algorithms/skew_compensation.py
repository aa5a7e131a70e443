"""Skew compensation: a phase of gossip rounds without gradient steps, followed by a merge of all models.

Aketi, Singh and Rabaey, "Sparse-Push: communication- and energy-efficient decentralized distributed learning over
directed and time-varying graphs with non-IID datasets", arXiv 2102.05715.
"""

from typing import Any

import equinox as eqx

from ntkp2p.algorithms.push_sum import nesterov
from ntkp2p.algorithms.sparse_push import SparsePush
from ntkp2p.base.arrays import namespace
from ntkp2p.base.checks import whole_rounds


class SkewCompensatedSparsePush(SparsePush):
    """Sparse-Push with periodic phases of gossip without gradient steps, each followed by a merge of all models.

    A cycle consists of `gradient_rounds` rounds of Sparse-Push, `gossip_rounds` rounds without a gradient step, and one
    round in which all models are averaged, x = u Σx/Σu. Cycles repeat; a run of one cycle is compensated at its end.
    The message counts include the merge as an exchange among all agents.

    Parameters
    ----------
    step_size, compression, averaging_rate, dense_rounds, momentum, adaptive
        As for `SparsePush`.
    gradient_rounds, gossip_rounds
        The numbers of rounds, as above. `gossip_rounds` is usually about the number of agents.

    Raises
    ------
    TypeError, ValueError
        As for `SparsePush`.

    Notes
    -----
    The public description of the skew-compensated algorithm mentions this phase and a final merge, in addition to top-k
    exchange. The details are our reading of it.

    Examples
    --------
    A cycle has 50 gradient rounds, 10 gossip rounds and one round for the merge:

    >>> import ntkp2p as p2p
    >>> p2p.SkewCompensatedSparsePush(
    ...     step_size=0.1, compression=p2p.TopK(0.01), gradient_rounds=50, gossip_rounds=10
    ... ).cycle
    61
    """

    gradient_rounds: int = eqx.field(static=True)
    gossip_rounds: int = eqx.field(static=True)

    def __init__(
        self,
        step_size: Any,
        compression: Any,
        *,
        gradient_rounds: Any,
        gossip_rounds: Any,
        averaging_rate: Any = None,
        dense_rounds: Any = 0,
        momentum: Any = None,
        adaptive: Any = None,
    ):
        super().__init__(
            step_size,
            compression,
            averaging_rate=averaging_rate,
            dense_rounds=dense_rounds,
            momentum=momentum,
            adaptive=adaptive,
        )
        self.gradient_rounds = whole_rounds("gradient_rounds", gradient_rounds, least=1)
        self.gossip_rounds = whole_rounds("gossip_rounds", gossip_rounds)

    @property
    def cycle(self) -> int:
        """The number of rounds in a cycle."""
        return self.gradient_rounds + self.gossip_rounds + 1

    def _descend(self, state, world):
        descends = state.phase < self.gradient_rounds
        gradient = world.grad(self.model(state), when=descends)
        step, velocity = nesterov(gradient, self.momentum, state.velocity)
        if velocity is not None:  # without gradient steps, the velocity is unchanged
            xp = namespace(velocity, descends)
            step, velocity = xp.where(descends, step, 0), xp.where(descends, velocity, state.velocity)
        return state._replace(x=state.x - self.step_size * step, velocity=velocity)

    def _exchange(self, state, world):
        merges = state.phase == self.cycle - 1
        state = super()._exchange(state, world)
        xp = namespace(state.x, state.weights, merges)
        share = world.average(state.x, when=merges) / xp.where(merges, world.average(state.weights, when=merges), 1)
        return state._replace(
            x=xp.where(merges, state.weights * share, state.x),
            memory=xp.where(merges, 0, state.memory),
            phase=(state.phase + 1) % self.cycle,
        )
