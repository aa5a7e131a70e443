"""The look of all plots: one style sheet, colours, and how sources are told apart.

The style sheet is `STYLE`, for `matplotlib.pyplot.style.use`. Sources differ in the width and the dash of their lines
and in what fills their bands, and not in colour alone. The functions that draw are in the `plots` module of each
package; every one draws within `STYLE` and returns its axes.
"""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes

#: The style sheet of all plots: `plt.style.use(STYLE)`, or by its name "ntkp2p.base.ntkp2p".
STYLE = Path(__file__).with_name("ntkp2p.mplstyle")
#: Its colours, which colour-blind readers tell apart: Okabe and Ito's.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK = matplotlib.rc_params_from_file(STYLE, use_default_template=False)[
    "axes.prop_cycle"
].by_key()["color"]
#: The agent at the lower end of a range, and at the upper one.
LOWEST, HIGHEST = BLUE, GREEN
#: What comes in an order, agents or classes, from dark to light in grey, too.
ORDERED = "viridis"
#: Lines beside the matter: axes, zeros, links under their weights.
FAINT: dict[str, Any] = {"color": "0.85", "linewidth": 0.6, "linestyle": "-"}
DASHED, DOTTED = (0, (4, 2)), (0, (1.2, 0.8))

#: How a source is drawn. Trained curves are broad and coloured by agent, predictions thin, dark, and on top.
LINES: dict[str, dict[str, Any]] = {
    "trained": {"linewidth": 3.2, "alpha": 0.55, "linestyle": "-", "solid_capstyle": "round", "zorder": 1},
    "rounds": {"linewidth": 0.9, "color": "black", "linestyle": DASHED, "zorder": 3},
    "flow": {"linewidth": 0.9, "color": VERMILLION, "linestyle": (0, (1, 1.5)), "zorder": 2},
    "steady": {"linewidth": 0.9, "alpha": 0.8, "linestyle": (0, (6, 2, 1, 2)), "zorder": 2},
}
#: The same of a range over many agents: filled, hatched or outlined.
RANGES: dict[str, dict[str, Any]] = {
    "trained": {"facecolor": "0.85", "edgecolor": "none", "zorder": 0},
    "rounds": {"facecolor": "none", "edgecolor": "0.45", "hatch": "////", "linewidth": 0.6, "zorder": 0.5},
    "flow": {"facecolor": "none", "edgecolor": VERMILLION, "linestyle": ":", "linewidth": 0.9, "zorder": 0.6},
    "steady": {"facecolor": "none", "edgecolor": "0.45", "hatch": "....", "linewidth": 0.6, "zorder": 0.5},
}
LABELS = {
    "trained": "trained",
    "rounds": "predicted, rounds",
    "flow": "predicted, flow",
    "steady": "predicted, steady state",
}


def note(ax: Axes, words: str) -> Axes:
    """Words in place of what cannot be drawn."""
    ax.text(0.5, 0.5, words, ha="center", transform=ax.transAxes)
    ax.set_axis_off()
    return ax
