"""Skew compensation: a phase of gossip rounds without gradient steps, and a merge of all models at its end.

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
    """Sparse-Push whose agents stop now and then to gossip without gradient steps, and to merge their models.

    A cycle has `gradient_rounds` rounds of Sparse-Push, `gossip_rounds` of them without a gradient step, and one round
    in which all models are averaged, x = u Σx/Σu; then the next one begins. A run of one cycle is compensated at its
    end. The merge is an exchange among all, and counted as one.

    Parameters
    ----------
    step_size, compression, averaging_rate, dense_rounds, momentum, adaptive
        As for `SparsePush`.
    gradient_rounds, gossip_rounds
        As above; about as many of the latter as there are agents are usual.

    Raises
    ------
    TypeError, ValueError
        As `SparsePush`.

    Notes
    -----
    What is public of the skew-compensated algorithm is such a phase and a final merge, on top of top-k exchange. This
    is our reading of it.

    Examples
    --------
    A cycle has its gradient rounds, its gossip rounds and one for the merge:

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
        """The rounds of a cycle."""
        return self.gradient_rounds + self.gossip_rounds + 1

    def _descend(self, state, world):
        descends = state.phase < self.gradient_rounds
        gradient = world.grad(self.model(state), when=descends)
        step, velocity = nesterov(gradient, self.momentum, state.velocity)
        if velocity is not None:  # which rests meanwhile
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
