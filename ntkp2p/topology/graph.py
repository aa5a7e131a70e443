"""networkx graphs that show and draw themselves, and know their specification."""

from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from ntkp2p.base.errors import InputError
from ntkp2p.base.reports import html_table, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Shown:
    """How a graph of agents reads and looks."""

    #: What `from_spec` builds it from; empty for what was made of other graphs, or copied.
    spec: str = ""

    @classmethod
    def of(cls: Any, graph: nx.Graph, spec: str, /) -> Any:
        """Another networkx graph, copied, with its specification.

        Parameters
        ----------
        graph
            Of the same kind, directed or not.
        spec
            What `from_spec` builds it from.
        """
        made = cls(graph)
        made.spec = spec
        return made

    def to_directed_class(self) -> type[nx.DiGraph]:
        """What networkx makes of it where links are to have directions."""
        return DiGraph

    def to_undirected_class(self) -> type[nx.Graph]:
        """What networkx makes of it where links are to go both ways."""
        return Graph

    def plot(self: Any, mixing: Any = None, /, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the agents and their links.

        Parameters
        ----------
        mixing
            W, shape (Q, Q), rows in the graph's node order: links are then as broad as their weights, and agents as
            large as their self-weights. By default all are alike.
        ax
            Where to draw; by default new axes.

        Returns
        -------
        Axes
            Of more than 100 agents or 1,500 links there is but a note on it.

        Raises
        ------
        ValueError
            If the matrix has another shape.
        """
        from ntkp2p.topology import plots

        W = None if mixing is None else np.asarray(mixing, float)
        if W is not None and W.shape != (len(self), len(self)):
            raise InputError(f"mixing has shape {W.shape} and the graph {len(self)} agents: give it a row for each")
        return plots.graph(self, W, ax=ax)

    def __repr__(self: Any) -> str:
        spec = f"{self.spec}, " if self.spec else ""
        links = "directed links" if self.is_directed() else "links"
        return f"{type(self).__name__}({spec}{len(self)} agents, {self.number_of_edges()} {links})"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self: Any) -> str:
        degrees = [degree for _, degree in (self.out_degree if self.is_directed() else self.degree)]
        rows = [("agents", len(self)), ("links", self.number_of_edges()), ("directed", self.is_directed())]
        if degrees:
            rows.append(("neighbours of an agent", f"{min(degrees)} to {max(degrees)}"))
        drawn = picture(self.plot, size=(2.6, 2.6)) if len(self) else ""
        return html_table([self.spec or type(self).__name__, ""], rows) + drawn


class Graph(_Shown, nx.Graph):
    """A networkx graph that shows itself, built as any ``networkx.Graph``: links go both ways."""


class DiGraph(_Shown, nx.DiGraph):
    """A networkx graph that shows itself, built as any ``networkx.DiGraph``: over u → v, u sends to v."""
