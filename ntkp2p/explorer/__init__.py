"""The explorer: an experiment under one's hands in Jupyter, predicted anew with every move."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkp2p.explorer.widgets import Explorer


def explore(start: Mapping[str, Any] | str | os.PathLike[str] | None = None, /) -> Explorer:
    """Widgets for an experiment: graph, weights, algorithm, step size, data; its predictions follow every move.

    All samples' kernel is computed once for each data set and model, and dealt to the agents anew. The networks train
    when asked to, beside their predictions.

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
