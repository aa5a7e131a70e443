"""The stability of one experiment over step sizes and delays, or over step sizes and eigenvalues of W."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ntkp2p.algorithms import Algorithm, Delayed
from ntkp2p.analysis.stability import must_be_linear
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.reports import html_table
from ntkp2p.base.threads import one_thread
from ntkp2p.dynamics.spectrum import STABILITY_TOLERANCE, spectrum
from ntkp2p.dynamics.step_size import largest_step_size, with_step_size
from ntkp2p.dynamics.system import linear_system
from ntkp2p.kernels import Features
from ntkp2p.runs.mean_field import with_measured_shares
from ntkp2p.runs.prediction import features_of
from ntkp2p.topology.matrix import symmetric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ntkp2p.runs.experiment import Experiment


@dataclass(frozen=True, eq=False)
class StabilityMap:
    """The spectral radius of the rounds over step size and delay, or over step size and λ_min(W).

    Attributes
    ----------
    radius
        An `xarray.DataArray` with the dimensions `gradient_delay`, `message_delay` or `smallest_eigenvalue`, and
        `step_size`.
    limits, textbook
        The exact and the textbook's sufficient bound of stable step sizes, one for each row; NaN where there is none.
    """

    radius: xr.DataArray
    limits: np.ndarray
    textbook: np.ndarray

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """The map, white where it is stable, and both boundaries, into the axes `ax` or new ones; returns the axes."""
        from ntkp2p.analysis import plots

        return plots.stability_map(self, ax=ax)

    def __repr__(self) -> str:
        name, steps = str(self.radius.dims[0]), self.radius["step_size"].values
        up, stable = self.radius[name].values, int((self.radius <= 1 + STABILITY_TOLERANCE).sum())
        return (
            f"StabilityMap(step sizes {steps.min():.4g} to {steps.max():.4g} × {name.replace('_', ' ')} "
            f"{up.min():.4g} to {up.max():.4g}, {stable} of {self.radius.size} stable)"
        )

    def _repr_html_(self) -> str:
        name = str(self.radius.dims[0])
        rows = zip(self.radius[name].values, self.limits, self.textbook, strict=True)
        header = [name.replace("_", " "), "largest stable step size", "textbook's sufficient bound"]
        return html_table(header, ([f"{value:.4g}" for value in row] for row in rows))


@in_float64
@one_thread()
def stability_map(
    experiment: Experiment,
    step_sizes: Any,
    /,
    *,
    gradient_delays: Any = None,
    message_delays: Any = None,
    smallest_eigenvalues: Any = None,
    features: Features | None = None,
) -> StabilityMap:
    """Where a run is stable: the spectral radius of its rounds over two of its constants.

    Parameters
    ----------
    experiment
        The run; its own step size does not matter.
    step_sizes
        η, across.
    gradient_delays, message_delays
        Rounds by which gradients or messages are late, up; see `ntkp2p.Delayed`.
    smallest_eigenvalues
        λ_min of the matrices (1 − a) I + a W, up: W made lazier or keener. W is to be symmetric.
    features
        As for `ntkp2p.predict`.

    Returns
    -------
    map
        With `.radius`, `.limits` and `.plot()`.

    Raises
    ------
    ValueError
        If not exactly one of the three is given, a value is not possible, or as `stability`.

    Notes
    -----
    Every point takes the eigenvalues of a system of (1 + delay) · n states: meant for up to a few hundred states.

    Examples
    --------
    Gradients that are two rounds late bear η < 2 sin(π/10) = 0.618:

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
    >>> plane = p2p.stability_map(experiment, [0.5, 0.7], gradient_delays=[2])
    >>> (plane.radius < 1).values
    array([[ True, False]])
    """
    given = {
        "gradient_delay": gradient_delays,
        "message_delay": message_delays,
        "smallest_eigenvalue": smallest_eigenvalues,
    }
    chosen = [name for name, values in given.items() if values is not None]
    if len(chosen) != 1:
        raise InputError(
            "a map has one of gradient_delays, message_delays and smallest_eigenvalues beside the step sizes, found "
            f"{' and '.join(chosen) or 'none'}"
        )
    must_be_linear(experiment)
    if experiment.asynchronous:
        raise InputError("a map is of synchronous rounds: see stability(experiment) and timeliness(experiment)")
    (name,), etas = chosen, np.asarray(step_sizes, float)
    values = np.asarray(given[name])
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iuf":
        raise InputError(f"{name}s must be a list of numbers, found {given[name]!r}")
    if etas.ndim != 1 or not len(etas) or not (np.isfinite(etas) & (etas > 0)).all():
        raise InputError(f"step_sizes must be a list of positive numbers, found {step_sizes!r}")
    features, experiment = features_of(experiment, features), with_measured_shares(experiment)
    rows, limits, textbook = [], [], []
    for value in values:
        algorithm, mixing = _varied(experiment, name, value)
        system = linear_system(algorithm, mixing, features, experiment.data)
        rows.append([spectrum(with_step_size(system, float(eta))).radius for eta in etas])
        limits.append(largest_step_size(system))
        textbook.append(system.sufficient_step_size)
    radius = xr.DataArray(
        np.array(rows),
        dims=(name, "step_size"),
        coords={name: values, "step_size": etas},
        name="spectral_radius",
    )
    return StabilityMap(radius, np.array(limits), np.array(textbook))


def _varied(experiment: Experiment, name: str, value: Any) -> tuple[Algorithm, Any]:
    algorithm, mixing = experiment.algorithm, experiment.topology.matrix
    if name.endswith("delay"):
        late = "gradients" if name == "gradient_delay" else "messages"
        return Delayed(algorithm, **{late: value}), experiment.topology
    if mixing is None or not symmetric(mixing):
        raise InputError("smallest_eigenvalues are of one symmetric matrix: give the experiment one")
    least = float(np.linalg.eigvalsh(mixing)[0])
    if least > 1 - STABILITY_TOLERANCE:
        raise InputError("smallest_eigenvalues need mixing that mixes: this W is the identity")
    if not (np.isfinite(value) and value < 1):
        raise InputError(f"λ_min of a mixing matrix lies below 1, found {value:g}")
    a = (1 - value) / (1 - least)
    return algorithm, (1 - a) * np.eye(len(mixing)) + a * mixing
