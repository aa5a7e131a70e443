"""Which weights for this graph? The usual ones side by side, and how long a run takes with each.

The fastest mixing is not always the fastest training: a run whose losses disagree little is helped more by what damps
noise or allows a larger step than by the spectral gap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from ntkp2p.base.errors import InputError, MissingPackageError, NotConvergedError
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.prediction import features_of
from ntkp2p.runs.rounds_to_loss import MOST, mean_losses, rounds_to_loss
from ntkp2p.topology import best_constant, check_mixing, fastest_mixing, lazy, max_degree, metropolis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Above so many agents the semidefinite programs are not tried: they would take minutes.
LARGEST_PROGRAM = 100
#: By default a run is to come down to this share of its initial loss.
SHARE = 0.1

#: What is compared, as one would type it.
MIXINGS: Mapping[str, Callable[[nx.Graph], np.ndarray]] = {
    "metropolis(graph)": metropolis,
    "max_degree(graph)": max_degree,
    "best_constant(graph)": best_constant,
    "lazy(metropolis(graph))": lambda graph: lazy(metropolis(graph)),
    "fastest_mixing(graph)": fastest_mixing,
    "fastest_mixing(graph, nonnegative=False)": partial(fastest_mixing, nonnegative=False),
}


@dataclass(frozen=True, repr=False)
class MixingComparison:
    """Mixing matrices of one graph side by side; print it for the table.

    Attributes
    ----------
    matrices : dict of ndarray
        By what one types for them: those that could be built.
    table : pandas.DataFrame
        One row for each: `second_modulus`, `spectral_gap`, `effective_neighbours` (at decay 0.9), with an experiment
        `rounds` to the target loss (NaN where it is not reached), and `note`, why a row lacks something.
    target : float or None
        The loss that the rounds are counted to.
    """

    matrices: dict[str, np.ndarray]
    table: pd.DataFrame
    target: float | None

    def __repr__(self) -> str:
        return f"{self._title}\n{self.table.to_string(na_rep='—', float_format='{:.5f}'.format, formatters=_FORMATS)}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title}</p>" + self.table.to_html(
            na_rep="—", float_format="{:.5f}".format, formatters=_FORMATS
        )

    def plot(self) -> list[Axes]:
        """Bars of the spectral gaps and the effective neighbours, and of the rounds to the target; returns the axes."""
        from ntkp2p.analysis import plots

        return plots.mixings(self)

    @property
    def _title(self) -> str:
        aim = "" if self.target is None else f"; rounds until the mean global loss is {self.target:.4g}"
        return f"Mixing matrices of one graph{aim}"


_FORMATS: dict[Any, Any] = {"rounds": lambda rounds: "—" if np.isnan(rounds) else f"{rounds:.0f}"}


def compare_mixings(
    graph: nx.Graph, /, *, experiment: Experiment | None = None, target: float | None = None
) -> MixingComparison:
    """Metropolis, maximum-degree, best constant, lazy and fastest weights of a graph side by side.

    Each is the variant that its function says: Metropolis weighs a link 1/(1 + max(d_i, d_j)), maximum-degree
    1/(1 + d_max), best constant 2/(λ₂ + λ_n); the fastest have weights ≥ 0 (FMMC) or of any sign (FDLA).

    Parameters
    ----------
    graph
        As for `metropolis`.
    experiment
        A run on as many agents: its mixing is replaced by each of these in turn, and the rounds to the target are
        predicted. The kernel is computed once.
    target
        The loss to reach, as for `ntkp2p.rounds_to_loss`; by default a tenth of the initial one.

    Returns
    -------
    MixingComparison
        With the matrices, and a table.

    Raises
    ------
    TypeError, ValueError
        As `metropolis`; if the experiment has another number of agents than the graph, or a target comes without an
        experiment.

    Notes
    -----
    The fastest need cvxpy and Clarabel (`pip install 'ntkp2p[optimal]'`), and are left out above 100 agents; the rows
    then say so, as they do where the solver fails. A mixing that the experiment's algorithm cannot take has no rounds,
    and a note; so has one with which the target is not reached in a million rounds.

    Examples
    --------
    On a cycle of six, whose Laplacian has the eigenvalues 0, 1, 3 and 4:

    >>> import ntkp2p as p2p
    >>> p2p.compare_mixings(p2p.graphs.cycle(6)).table["second_modulus"].round(6).head(4)
    metropolis(graph)          0.666667
    max_degree(graph)          0.666667
    best_constant(graph)       0.600000
    lazy(metropolis(graph))    0.833333
    Name: second_modulus, dtype: float64

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    .. [2] Vogels, Hendrikx and Jaggi, "Beyond spectral gap", NeurIPS 2022.
    """
    import pandas as pd

    if experiment is None and target is not None:
        raise InputError("a target is for an experiment's loss: give experiment=... too")
    metropolis(graph)  # says first what is wrong with the graph
    if experiment is not None and experiment.agents != len(graph):
        raise InputError(
            f"the graph has {len(graph)} nodes and the experiment {experiment.agents} agents: take one size"
        )
    features = None
    if experiment is not None:
        features = features_of(experiment, None)
        if target is None:
            target = SHARE * float(mean_losses(experiment, np.array([0]), features)[0])
    matrices, rows = {}, {}
    for name, build in MIXINGS.items():
        if len(graph) > LARGEST_PROGRAM and name.startswith("fastest"):
            rows[name] = {"note": f"left out above {LARGEST_PROGRAM} agents: it would take minutes"}
            continue
        try:
            matrices[name] = build(graph)
        except (MissingPackageError, NotConvergedError) as error:
            rows[name] = {"note": str(error)}
            continue
        report = check_mixing(matrices[name])
        rows[name] = {
            "second_modulus": report.second_modulus,
            "spectral_gap": report.spectral_gap,
            "effective_neighbours": report.effective_neighbours(),
        }
        if experiment is not None:
            rows[name] |= _rounds(experiment, matrices[name], target, features)
    table = pd.DataFrame.from_dict(rows, orient="index")
    if "note" in table:
        table["note"] = table["note"].fillna("")
    return MixingComparison(matrices, table, target)


def _rounds(experiment: Experiment, W: np.ndarray, target: Any, features: Any) -> dict[str, Any]:
    try:
        run = dataclasses.replace(experiment, mixing=W)
    except InputError as error:
        return {"note": str(error)}
    rounds = rounds_to_loss(run, target, features=features)
    if rounds is None:
        return {"rounds": np.nan, "note": f"not reached in {MOST:,} rounds"}
    return {"rounds": float(rounds)}
