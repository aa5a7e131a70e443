"""Plots of linear systems."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ntkp2p.base.style import STYLE, note
from ntkp2p.topology.plots import unit_disc

if TYPE_CHECKING:
    from ntkp2p.dynamics import LinearSystem


def system(system: "LinearSystem", /, *, ax: Axes | None = None) -> Axes:
    """The eigenvalues of a round, or of a period's map, in the unit disc: of a large system the extreme ones.

    Parameters
    ----------
    system
        What `ntkp2p.linear_system` returns.
    ax
        Where to draw; by default new axes.
    """
    from ntkp2p.dynamics.spectrum import eigenvalues

    with plt.style.context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(4, 4), layout="constrained")[1]
        values = eigenvalues(system)
        if not len(values):
            return note(ax, "rounds that do not repeat themselves have no eigenvalues")
        of = "a period's map" if system.eventual.varying else "a round"
        count = f"{len(values)} extreme" if len(values) < system.eventual.size else f"{len(values)}"
        return unit_disc(values, ax=ax, title=f"{count} eigenvalues of {of}", mixing=False)
