"""The explorer: adjust an experiment interactively in Jupyter, with a new prediction after every change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkp2p.explorer.widgets import Explorer


def explore(start: Mapping[str, Any] | str | os.PathLike[str] | None = None, /) -> Explorer:
    """Widgets for an experiment: graph, weights, algorithm, step size, data; its predictions follow every move.

    Any algorithm of the package can be chosen, and the widgets are those of its parameters. Over a directed graph,
    push-sum and Sparse-Push take push-sum's weights. What cannot be combined is said in one line in place of the
    pictures. A parameter keeps its value when another algorithm that has it is chosen.

    The kernel of all samples is computed once for each data set and model. The networks train when asked to, beside
    their predictions.

    Parameters
    ----------
    start
        What to begin with: an experiment's tables, as `Experiment.from_dict` takes them, or the path of a TOML file.
        What the widgets cannot express stays as it is there.

    Returns
    -------
    explorer
        To be displayed, with `experiment`, `tables`, `predicted`, `trained`, `toml()` and `python()` of what it shows.

    Raises
    ------
    ImportError
        Without ipywidgets.
    FileNotFoundError, ValueError, TypeError
        If there is no such file, or no experiment in it.
    """
    from ntkp2p.explorer.widgets import Explorer

    return Explorer(start)
