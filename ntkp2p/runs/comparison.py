"""Compare predictions with training, and separate the sources of error.

Three errors separate a trained curve from its prediction:

linearisation
    trained − rounds: the network is only approximately linear; decreases with width.
time discretisation
    rounds − flow: the rounds only approximate the gradient flow; the end points differ by O(η).
solver
    the error estimate of the closed form, or of the integration if there is no closed form.

A prediction at infinite width is a mean over initialisations. A trained network differs from it by its own
initialisation and by its finite width: the first error is then called `initialisation and width`, and should be
compared with the standard deviations that the prediction states.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ntkp2p.base.errors import InputError
from ntkp2p.runs.measures import VARIABLES
from ntkp2p.runs.trajectory import Trajectory, save_netcdf

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SOURCES = ("trained", "rounds", "flow")


@dataclass(frozen=True)
class Comparison:
    """Trajectories of one experiment from several sources.

    Attributes
    ----------
    trajectories
        By source: some of "trained", "rounds" and "flow", in this order.
    """

    trajectories: dict[str, Trajectory]

    @property
    def dataset(self) -> xr.Dataset:
        """All trajectories, with a leading dimension `source`; rounds that a source has not reached are NaN."""
        parts = [t.dataset.drop_attrs(deep=False) for t in self.trajectories.values()]
        # The events of a training have their own times.
        apart = "minimal" if all(parts[0]["time"].equals(part["time"]) for part in parts) else ["time"]
        joined = xr.concat(
            parts, dim="source", join="outer", coords=apart, compat="override", combine_attrs="drop"
        ).assign_coords(source=list(self.trajectories))
        for source, trajectory in self.trajectories.items():
            for name, value in trajectory.dataset.attrs.items():
                shared = all(t.dataset.attrs.get(name) == value for t in self.trajectories.values())
                if name != "source":
                    joined.attrs[name if shared else f"{source}_{name}"] = value
        return joined

    @property
    def infinite(self) -> bool:
        """Whether the predictions are of infinite width."""
        return any(t.infinite for t in self.trajectories.values())

    def errors(self, variable: str = "local_loss", /) -> dict[str, float]:
        """The worst error over all rounds and agents of each kind, for one `variable`.

        Losses are relative to the agents' mean initial loss, distances to the largest distance of the run, and
        accuracies absolute. An error whose sources are missing is NaN. The solver's error is that of the states,
        relative to their distance from the start.
        """
        estimates = [t.dataset.attrs.get("error_estimate", np.nan) for t in self.trajectories.values()]
        return {
            self._between_trained_and_rounds: self._difference(variable, "trained", "rounds"),
            self._between_rounds_and_flow: self._difference(variable, "rounds", "flow"),
            "solver": float(np.nanmax(estimates)) if np.isfinite(estimates).any() else np.nan,
        }

    @property
    def _between_rounds_and_flow(self) -> str:
        """Of clocks both are exact: after so many events, and after as much time as these take on average."""
        wall = any(t.dataset.attrs.get("clock") == "wall" for t in self.trajectories.values())
        return "events against time" if wall else "time discretisation"

    @property
    def _between_trained_and_rounds(self) -> str:
        """What separates a trained curve from its prediction in rounds: the name of that error."""
        if self.infinite:
            return "initialisation and width"
        facts = {name for t in self.trajectories.values() for name in t.dataset.attrs}
        more = {"mean_field_share": "mean field", "mean_over": "draws"}
        return " and ".join(["linearisation", *(word for name, word in more.items() if name in facts)])

    def table(self) -> pd.DataFrame:
        """`errors` of every variable, one row each."""
        import pandas as pd

        first = next(iter(self.trajectories.values())).dataset
        return pd.DataFrame({str(name): self.errors(str(name)) for name in first.data_vars if name in VARIABLES}).T

    def plot(self, *variables: str) -> list[Axes]:
        """One panel for each of the `variables`, by default the local and the global loss; returns the axes."""
        from ntkp2p.runs import plots

        return plots.comparison(self, variables or ("local_loss", "global_loss"))

    def save(self, folder: str | os.PathLike[str], /) -> Path:
        """Write ``comparison.nc`` into a `folder`, and return its path."""
        return save_netcdf(self.dataset, Path(folder) / "comparison.nc")

    def _difference(self, variable: str, a: str, b: str) -> float:
        if a not in self.trajectories or b not in self.trajectories:
            return np.nan
        first, second = self.trajectories[a].dataset, self.trajectories[b].dataset
        # A training that diverged ends early: what there is of both is compared.
        x, y = (d[variable].values for d in xr.align(first, second, join="inner"))
        if variable.endswith("loss"):
            scale = np.mean(y[0])
        else:
            scale = 1.0 if variable.endswith("accuracy") else np.max(np.abs(y))
        with np.errstate(invalid="ignore"):
            worst = np.abs(x - y).max()
        return float(worst / scale) if scale > 0 else float(worst)

    def __repr__(self) -> str:
        return f"Comparison of {', '.join(self.trajectories)}; worst errors:\n{self._text()}"

    def _repr_html_(self) -> str:
        return self._known().to_html(float_format="{:.2e}".format)

    def _text(self) -> str:
        return self._known().to_string(float_format="{:.2e}".format)

    def _known(self) -> pd.DataFrame:
        """The table without errors of which one of the sources is missing."""
        return self.table().dropna(axis="columns", how="all")


def compare(*trajectories: Trajectory) -> Comparison:
    """Set trajectories of one experiment side by side.

    Parameters
    ----------
    trajectories
        Two or three, from different sources: trained, predicted in rounds, predicted in flow. A prediction of infinite
        width goes with the training of a network that differs from it in width only, from any seed.

    Returns
    -------
    Comparison
        With the errors between them as a table, and `plot()`.

    Raises
    ------
    ValueError
        If there are fewer than two, two from one source, or they are not of one experiment.

    Examples
    --------
    An affine model is its own linearisation:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> numbers = p2p.data.Dataset(name="numbers", inputs=np.zeros((3, 1)), targets=np.array([[0.0], [3.0], [6.0]]))
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=numbers.split(3, by="label"),
    ...     mixing=p2p.metropolis(p2p.graphs.complete(3)),
    ...     algorithm=p2p.DGD(step_size=0.5),
    ...     rounds=40,
    ... )
    >>> comparison = p2p.compare(p2p.train(experiment), p2p.predict(experiment))
    >>> comparison.errors()["linearisation"] < 1e-10
    True
    """
    by_source = {t.source: t for t in trajectories}
    if len(trajectories) < 2 or len(by_source) < len(trajectories) or not set(by_source) <= set(SOURCES):
        found = ", ".join(t.source for t in trajectories) or "none"
        raise InputError(f"compare takes trajectories from different sources (trained, rounds, flow), found {found}")
    first, *others = trajectories
    names = ["data", "split", "loss", "step_size", "algorithm", "constants", "mixing"]
    names += ["limit"] if any(t.infinite for t in trajectories) else ["model", "seed", "kernel"]
    for other in others:
        for name in names:
            a, b = first.dataset.attrs.get(name), other.dataset.attrs.get(name)
            if a != b:
                raise InputError(
                    f"these are not runs of one experiment: {name} is {a!r} ({first.source}) and {b!r} ({other.source})"
                )
    return Comparison({source: by_source[source] for source in SOURCES if source in by_source})
