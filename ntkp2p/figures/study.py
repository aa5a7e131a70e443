"""The runs behind the figures: their settings, in full and quick, and each run done once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ntkp2p import data as datasets
from ntkp2p.algorithms import DGD
from ntkp2p.models import affine, mlp
from ntkp2p.runs.comparison import Comparison, compare
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.prediction import predictions
from ntkp2p.runs.training import train
from ntkp2p.topology import graphs, metropolis

if TYPE_CHECKING:
    from ntkp2p.data import AgentData
    from ntkp2p.kernels import Features


Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """How large the figures' runs are."""

    agents: int
    samples: int
    tests: int
    rounds: int
    affine_rounds: int
    width: int
    widths: Sequence[int]
    seeds: int
    width_rounds: int
    class_samples: int
    stability_rounds: int
    stability_steps: int
    stability_rows: int
    push_every: int
    push_agents: Sequence[int]
    push_graphs: int
    push_seeds: int
    push_rounds: int
    push_width: int
    push_samples: int
    push_tests: int
    staleness_agents: Sequence[int]
    staleness_opportunistic: int
    staleness_seeds: int
    regression_agents: Sequence[int]
    regression_splits: int
    regression_every: int
    regression_time: float
    regression_width: int
    boundary_delays: int
    boundary_runs: int
    boundary_events: int
    boundary_seeds: int


FULL = Setting(
    agents=10,
    samples=200,
    tests=100,
    rounds=150,
    affine_rounds=400,
    width=1024,
    widths=(64, 128, 256, 512, 1024, 2048, 4096),
    seeds=3,
    width_rounds=100,
    class_samples=200,
    stability_rounds=4000,
    stability_steps=48,
    stability_rows=2,
    push_every=1,
    push_agents=(8, 16),
    push_graphs=3,
    push_seeds=3,
    push_rounds=600,
    push_width=64,
    push_samples=4000,
    push_tests=1000,
    staleness_agents=(4, 8, 16, 32, 64, 128, 256, 512, 1000),
    staleness_opportunistic=128,
    staleness_seeds=3,
    regression_agents=(8, 40),
    regression_splits=2,
    regression_every=1,
    regression_time=20.0,
    regression_width=512,
    boundary_delays=5,
    boundary_runs=4,
    boundary_events=6000,
    boundary_seeds=2,
)
QUICK = Setting(
    agents=10,
    samples=100,
    tests=50,
    rounds=60,
    affine_rounds=200,
    width=256,
    widths=(64, 256, 1024),
    seeds=2,
    width_rounds=40,
    class_samples=50,
    stability_rounds=1000,
    stability_steps=12,
    stability_rows=4,
    push_every=2,
    push_agents=(8,),
    push_graphs=1,
    push_seeds=1,
    push_rounds=40,
    push_width=32,
    push_samples=800,
    push_tests=200,
    staleness_agents=(4, 8, 16, 32),
    staleness_opportunistic=16,
    staleness_seeds=1,
    regression_agents=(8,),
    regression_splits=1,
    regression_every=2,
    regression_time=6.0,
    regression_width=64,
    boundary_delays=2,
    boundary_runs=2,
    boundary_events=4000,
    boundary_seeds=1,
)


class Study:
    """The runs behind the figures; each is done once, however many figures show it."""

    def __init__(self, setting: Setting, progress: Progress, *, images: Path | None = None):
        self.setting, self.progress, self.images, self.rows = setting, progress, images, []
        self.data: Callable[..., AgentData] = cache(self._data)
        self.features: Callable[..., Features] = cache(self._features)
        self.run: Callable[..., Comparison] = cache(self._run)

    def _data(self, agents: int, samples: int, classes: int, tests: int) -> AgentData:
        source = datasets.load("mnist", classes=tuple(range(classes)), samples=samples, test_samples=tests)
        return source.split(agents=agents, by="label")

    def experiment(
        self,
        *,
        width: int,
        depth: int,
        graph: str = "cycle",
        algorithm: type = DGD,
        step_size: float = 0.4,
        seed: int = 0,
        agents: int | None = None,
        samples: int | None = None,
        classes: int = 2,
        tests: int = 0,
        rounds: int | None = None,
    ) -> Experiment:
        """A label-sorted MNIST run; depth 0 is the affine classifier."""
        agents, rounds = agents or self.setting.agents, rounds or self.setting.rounds
        return Experiment(
            model=mlp(width=width, depth=depth, weight_std=1.0) if depth else affine(),
            data=self.data(agents, samples or self.setting.samples, classes, tests),
            mixing=metropolis(graphs.GRAPHS[graph](agents)),
            algorithm=algorithm(step_size=step_size),
            rounds=rounds,
            record=_early_and_even(rounds),
            # An affine classifier is exact, which float64 shows; float32 is ample beside a linearisation error.
            precision="float32" if depth else "float64",
            seed=seed,
        )

    def _features(self, **settings: Any) -> Features:
        return self.experiment(**settings).features()

    def _run(self, name: str, observe: Callable | None = None, **settings: Any) -> Comparison:
        dynamics = ("graph", "algorithm", "step_size", "rounds")  # the features do not depend on these
        of_features = {k: v for k, v in settings.items() if k not in dynamics}
        return self.compared(name, self.experiment(**settings), lambda: self.features(**of_features), observe)

    def compared(
        self, name: str, experiment: Experiment, features_of: Callable[[], Features], observe: Callable | None = None
    ) -> Comparison:
        """An experiment predicted and trained, with a row of its errors and times."""
        start = time.perf_counter()
        features = features_of()
        predicted = predictions(experiment, features=features)
        middle = time.perf_counter()
        trained = train(
            experiment,
            progress=lambda done, total: self.progress(name, done, total),
            observe=observe,
        )
        end = time.perf_counter()
        result = compare(trained, *predicted.values())
        self.rows.append({"run": name} | result.errors() | {"predict [s]": middle - start, "train [s]": end - middle})
        return result


def _early_and_even(rounds: int) -> list[int]:
    """The first rounds, where the flow and the rounds part, and some 25 more."""
    return sorted({*range(0, 9), *np.linspace(8, rounds, 25).astype(int).tolist()})


Drawn = tuple[Figure, dict[str, xr.Dataset]]


def few_inputs(study: Study) -> Experiment:
    """An affine classifier of five principal components of the images: every analysis of it is exact and quick."""
    data = study.data(4, 40, 2, 0)
    flat = data.inputs.reshape(len(data.inputs), -1)
    inputs = flat @ np.linalg.svd(flat, full_matrices=False)[2][:5].T * np.sqrt(5 / flat.shape[1])  # one curvature
    dataset = replace(data.dataset, inputs=inputs, targets=data.targets, labels=data.labels, test_inputs=inputs[:0])
    owned = tuple(np.flatnonzero(data.owner == q) for q in range(data.agents))
    return Experiment(
        model=affine(),
        data=replace(data, dataset=dataset, indices=owned),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.1),
        rounds=study.setting.stability_rounds,
        record=2,
    )


def with_step_size(experiment: Experiment, step_size: float) -> Experiment:
    return replace(experiment, algorithm=eqx.tree_at(lambda a: a.step_size, experiment.algorithm, step_size))


def row_of_panels(count: int) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(1, count, figsize=(max(4.6, 3.5 * count), 3.5), layout="constrained", squeeze=False)
    return figure, axes[0]


def same_limits(axes: Iterable[Any]) -> None:
    axes = list(axes)
    limits = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())
