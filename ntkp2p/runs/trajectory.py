"""The result of a run, predicted or trained: labelled, saved, loaded and plotted."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ntkp2p.base.checksums import is_intact, seal
from ntkp2p.base.errors import InputError
from ntkp2p.base.files import netcdf_engine, replacing

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

    from ntkp2p.runs.experiment import Experiment


@runtime_checkable
class Models(Protocol):
    """The agents' models along a predicted run."""

    def parameters(self, agent: int, round: float, /) -> Any:
        """θ_q at a recorded round, in the network's own structure.

        Parameters
        ----------
        agent
            q, from 0.
        round
            One that was recorded.
        """
        ...

    def outputs(self, x: np.ndarray, round: float, /) -> np.ndarray:
        """Every agent's outputs at a recorded round, shape (Q, M, C).

        Parameters
        ----------
        x
            Inputs, shape (M, ...).
        round
            One that was recorded.
        """
        ...


#: A trained run has diverged once a loss is this many times the largest initial one.
GROWN = 1000.0


class Trajectory:
    """Every agent's measures over the recorded rounds.

    Parameters
    ----------
    dataset
        The measures, as below, or a function that returns them on first use.
    models
        As below.

    Attributes
    ----------
    dataset
        An `xarray.Dataset` with dimensions `round` and `agent`. The variables are those of
        `ntkp2p.runs.measures.VARIABLES` that the run has, each (round, agent). The coordinate `time` = η · round is
        flow time; for asynchronous agents it is wall-clock time. The attributes describe the run: `source` ("trained",
        "rounds", "flow" or "steady"), algorithm, step size, and the solver's error estimate.

        A prediction at infinite width has the attribute `width` "infinite". Its losses and accuracies are means over
        initialisations, its distances root mean squares, and `local_loss_std`, `global_loss_std` and `test_loss_std`
        are the standard deviations of the losses.
    models
        The agents' models of a prediction; None for a trained run and for one that was loaded from a file.
    """

    def __init__(self, dataset: xr.Dataset | Callable[[], xr.Dataset], models: Models | None = None):
        self._dataset, self.models = dataset, models

    @cached_property
    def dataset(self) -> xr.Dataset:
        """The measures, by round and agent."""
        return self._dataset() if callable(self._dataset) else self._dataset

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and self.dataset.identical(other.dataset)

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        source: str,
        rounds: np.ndarray,
        measured: dict[str, np.ndarray],
        /,
        *,
        models: Models | None = None,
        times: np.ndarray | None = None,
        **attributes: Any,
    ) -> Trajectory:
        """Label what was measured with the run that it belongs to.

        Parameters
        ----------
        experiment
            The run.
        source
            "trained", "rounds", "flow" or "steady".
        rounds
            Those that were recorded, ascending.
        measured
            Arrays of shape (rounds, agents), by variable.
        models
            The models behind a prediction.
        times
            When the rounds were over; by default as the experiment says.
        **attributes
            What else is to be said of the run, by name.
        """
        columns = {name: (("round", "agent"), np.asarray(v, float)) for name, v in measured.items()}
        coordinates = {
            "round": np.asarray(rounds),
            "time": ("round", experiment.time(np.asarray(rounds)) if times is None else times),
            "agent": np.arange(experiment.agents),
        }
        facts = {"source": source, **experiment.describe()}
        facts |= {k: int(v) if isinstance(v, bool) else v for k, v in attributes.items()}
        return cls(partial(_labelled, columns, coordinates, facts), models)

    @property
    def source(self) -> str:
        """ "trained", "rounds", "flow" or "steady"."""
        return self.dataset.attrs["source"]

    @property
    def stable(self) -> bool:
        """Whether the linear model of a prediction is stable: its spectrum decides, not the recorded rounds.

        Raises
        ------
        InputError
            For a trained run, which says nothing about later rounds: see `diverged`.
        """
        if self.source == "trained":
            raise InputError("a trained run does not decide stability: see its attribute diverged")
        return bool(self.dataset.attrs.get("stable", True))

    @property
    def diverged(self) -> bool:
        """Whether a trained run's losses grew beyond `GROWN` times the largest initial one, or are not finite."""
        return bool(self.dataset.attrs.get("diverged", False))

    @property
    def grows(self) -> bool:
        """Whether a trained run diverged, or a prediction's linear model is unstable."""
        return self.diverged if self.source == "trained" else not self.stable

    @property
    def infinite(self) -> bool:
        """Whether this is the average over initialisations, at infinite width."""
        return self.dataset.attrs.get("width") == "infinite"

    def __getattr__(self, name: str) -> xr.DataArray:
        # trajectory.local_loss reads as the variable that it is.
        if "_dataset" in self.__dict__ and not name.startswith("__") and name in self.dataset:
            return self.dataset[name]
        raise AttributeError(f"a trajectory has no {name!r}: see trajectory.dataset")

    def save(self, path: str | os.PathLike[str], /) -> Path:
        """Write netCDF, atomically: a reader never sees half a file.

        Parameters
        ----------
        path
            Of the file.

        Returns
        -------
        Path
            The same.

        Examples
        --------
        >>> import tempfile, pathlib
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
        >>> predicted = p2p.predict(experiment)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = p2p.Trajectory.load(predicted.save(pathlib.Path(folder) / "run.nc"))
        >>> again.dataset.identical(predicted.dataset)
        True
        """
        return save_netcdf(self.dataset, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], /) -> Trajectory:
        """Read what `save` wrote.

        Parameters
        ----------
        path
            Of the file.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is not a trajectory.
        """
        dataset = load_netcdf(path)
        if "source" not in dataset.attrs:
            raise InputError(f"{path} is not a trajectory: it has no attribute 'source'")
        return cls(dataset)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each round and agent."""
        return self.dataset.to_dataframe().reset_index()

    def parameters(self, agent: int, round: float | int | None = None, /) -> Any:
        """The predicted parameters θ_q of an agent's network at a recorded round, in the network's own structure.

        Coordinates become parameters by one vector-Jacobian product.

        Parameters
        ----------
        agent
            q, from 0.
        round
            A recorded round; by default the last one.

        Raises
        ------
        ValueError
            If there is no such agent, the round was not recorded, the run was trained or loaded from a file, or the
            model has no parameters of its own: infinite width, or a kernel that several outputs share.

        Examples
        --------
        The bias is the constant that agents learn of 0, 3 and 6; no input feels the weight:

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
        >>> (layer,) = p2p.predict(experiment).parameters(2)
        >>> round(float(layer["bias"][0]), 6)
        4.0
        """
        models, at = self._models_at(round)
        if not 0 <= agent < self.dataset.sizes["agent"]:
            raise InputError(f"there is no agent {agent}: they are 0 to {self.dataset.sizes['agent'] - 1}")
        return models.parameters(agent, at)

    def outputs(self, x: np.ndarray, round: float | int | None = None, /) -> np.ndarray:
        """Every agent's predicted outputs on inputs x of shape (M, ...) at a recorded round, shape (Q, M, C).

        Parameters
        ----------
        x
            New inputs, or any others.
        round
            A recorded round; by default the last one.

        Raises
        ------
        ValueError
            If the round was not recorded, or the run was trained or loaded from a file.
        """
        models, at = self._models_at(round)
        return models.outputs(x, at)

    def _models_at(self, round: float | int | None) -> tuple[Models, float]:
        rounds = self.dataset["round"].values
        if self.models is None:
            raise InputError(
                f"this run ({self.source}) has no models with it: predict(experiment) has, and training hands its "
                "parameters to train(experiment, observe=...)"
            )
        at = float(rounds[-1]) if round is None else float(round)
        if at not in rounds:
            near = rounds[np.argmin(np.abs(rounds - at))]
            raise InputError(f"round {at:g} was not recorded, the nearest is {near:g}: record=[{at:g}] adds it")
        return self.models, at

    def plot(self, variable: str = "local_loss", /, *, against: str = "round", ax: Axes | None = None) -> Axes:
        """Every agent's curve of one variable against rounds, their time on top; returns the axes.

        A mean over initialisations has a band of one standard deviation about it, where that is known.

        Parameters
        ----------
        variable
            One of the dataset's.
        against
            "round", "time", or what all agents have sent or computed by then: "messages", "bytes_sent" or "gradients".
        ax
            Where to draw; by default new axes.
        """
        from ntkp2p.runs import plots

        return plots.agent_curves([self], variable, ax=ax, against=against)

    def __repr__(self) -> str:
        d = self.dataset
        state = "" if not self.grows else ", diverged" if self.source == "trained" else ", unstable"
        state += "" if d.attrs.get("converged", True) else ", solver not converged"
        state += ", interrupted" if "interrupted_at" in d.attrs else ""
        state += f", mean over draws ({d.attrs['mean_over']})" if "mean_over" in d.attrs else ""
        final = float(d["global_loss"][-1].mean()) if "global_loss" in d else np.nan
        spread = f" ± {float(d['global_loss_std'][-1].mean()):.2g}" if "global_loss_std" in d else ""
        return (
            f"Trajectory({self.source}: {d.attrs.get('algorithm')}, {d.sizes['agent']} agents, "
            f"{d['round'][-1].item():g} rounds, final global loss {final:.4g}{spread}{state})"
        )

    def _repr_html_(self) -> str:
        return f"<p><code>{html.escape(repr(self))}</code></p>{self.dataset._repr_html_()}"


def _labelled(columns: dict[str, Any], coordinates: dict[str, Any], facts: dict[str, Any]) -> xr.Dataset:
    import xarray as xr  # a third of a second, which a prediction does not wait for

    return xr.Dataset(columns, coords=coordinates, attrs=facts)


def save_netcdf(dataset: xr.Dataset, path: str | os.PathLike[str], /) -> Path:
    """Write a dataset, its arrays and the whole file with checksums, through a temporary file beside the target."""
    engine = netcdf_engine()
    stored = {**dataset.data_vars, **dataset.coords}
    numbers = {str(name) for name, array in stored.items() if array.size and array.ndim and array.dtype.kind in "biuf"}
    checked = {name: {"fletcher32": True} for name in numbers}
    with replacing(path) as temporary:
        dataset.to_netcdf(temporary, engine=engine, encoding=checked)
        seal(temporary)
    return Path(path)


def load_netcdf(path: str | os.PathLike[str], /) -> xr.Dataset:
    """Read a dataset that `save_netcdf` wrote into memory, and close the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a byte of the file has changed since, or another program wrote it.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a netCDF file that save() wrote")
    # The checksum first: HDF5's library may end the process when it parses a damaged file.
    intact = is_intact(Path(path))
    if intact is False:
        raise InputError(f"{path} is damaged: its checksum does not match, so compute and save it again")
    if intact is None:
        raise InputError(
            f"{path} has no checksum, so it was cut off or not written by save(): "
            "compute and save it again, or read it with xarray.load_dataset(path)"
        )
    import xarray as xr

    return xr.load_dataset(path, engine=netcdf_engine())
