"""How results read and look: short texts, HTML, axes with labels, and pictures that survive grey paper."""

import dataclasses
import io
import pickle
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.axes import Axes
from PIL import Image

import ntkp2p as p2p
from ntkp2p import AsynchronousGossip, Objective, Trajectory, clocks, graphs, metropolis
from ntkp2p.analysis.delay_margins import Margin
from ntkp2p.analysis.stability_map import StabilityMap
from ntkp2p.analysis.timeliness import Lateness
from ntkp2p.base.reports import Report
from ntkp2p.dynamics.spectrum import eigenvalues
from ntkp2p.runs import plots

ROUNDS = np.arange(41)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def trajectory(source, agents, level=1.0):
    """Losses that fall from one level to a tenth of it, agent by agent at a rate of its own."""
    losses = level * np.exp(-np.log(10) * ROUNDS[:, None] / 40 * np.linspace(1, 3, agents))
    attributes = {"source": source, "step_size": 0.1}
    coords = {"round": ROUNDS, "time": ("round", 0.1 * ROUNDS), "agent": np.arange(agents)}
    return Trajectory(xr.Dataset({"local_loss": (("round", "agent"), losses)}, coords, attributes))


def grey(ax):
    """What is inside the axes, as luminances: 0 is black, and 255 white."""
    file, box = io.BytesIO(), ax.get_window_extent()
    ax.figure.savefig(file, format="png", dpi=ax.figure.dpi, bbox_inches=None)
    picture = np.asarray(Image.open(file).convert("L"))
    bottom, top = (int(len(picture) - y) for y in (box.y0, box.y1))
    return picture[top + 3 : bottom - 3, int(box.x0) + 3 : int(box.x1) - 3]


@pytest.mark.parametrize("agents", [4, 50])
def test_trained_and_predicted_differ_on_grey_paper(agents):
    ax = plots.agent_curves([trajectory("trained", agents), trajectory("rounds", agents, level=1e3)])
    assert len(ax.lines) == (8 if agents == 4 else 6)  # the mean, the lowest and the highest of many
    assert len(ax.get_legend().get_texts()) <= 8
    trained, predicted = ax.lines[0], ax.lines[-1]
    assert trained.get_linewidth() > 2 * predicted.get_linewidth()
    assert not trained.is_dashed()
    assert predicted.is_dashed()
    ax.get_legend().remove()
    ax.figure.draw_without_rendering()
    above, below = np.array_split(grey(ax), 2)
    if agents == 4:  # thick and without gaps below, thin and with gaps above
        bare = [(half.min(axis=0) > 200).mean() for half in (above, below)]
        assert bare[0] > 0.005 > bare[1]
        assert (below < 230).sum() > 2 * (above < 230).sum()
    else:  # a filled range below, and hatches on white above
        filled = [((half > 213) & (half < 221)).mean() for half in (above, below)]
        assert filled[1] > 3 * filled[0]


def test_of_many_agents_the_ends_of_the_last_finite_round_are_named():
    first, second = (trajectory(source, 30) for source in ("trained", "rounds"))
    first.dataset["local_loss"][20] = np.random.default_rng(0).permutation(30) + 1.0
    first.dataset["local_loss"][21:] = np.inf
    values = first.local_loss.values[20]
    ax = plots.agent_curves([first, second])
    named = [text for text in ax.texts if text.get_text().startswith("agent")]
    assert [text.get_text() for text in named] == [f"agent {values.argmin()}", f"agent {values.argmax()}"]
    assert [text.xy for text in named] == [(20, 1.0), (20, 30.0)]
    mean, low, high = (line.get_ydata() for line in ax.lines[3:])  # the same agents in the other source
    np.testing.assert_allclose(mean, second.local_loss.mean("agent"))
    np.testing.assert_array_equal(low, second.local_loss[:, values.argmin()])
    np.testing.assert_array_equal(high, second.local_loss[:, values.argmax()])


def test_standard_deviations_of_many_agents_are_one_band():
    found = trajectory("rounds", 30)
    found.dataset["local_loss_std"] = 0.5 * found.dataset["local_loss"]
    ax = plots.agent_curves([found])
    corners = ax.collections[-1].get_paths()[0].vertices[:, 1]
    losses = found.local_loss.values
    assert corners.max() == pytest.approx(1.5 * losses.max())
    assert corners.min() == pytest.approx(0.5 * losses.min())
    assert len(ax.collections) == 2


def test_a_prediction_by_itself_has_the_agents_colours():
    ax = plots.agent_curves([trajectory("rounds", 4)])
    assert len({tuple(line.get_color()) for line in ax.lines}) == 4
    assert all(line.is_dashed() for line in ax.lines)


class Tags(HTMLParser):
    """Every element that begins also ends, in the right order."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("input", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """<img/> is complete."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def results(digits):
    """One of everything that shows itself."""
    exponential = clocks.Exponential
    gossip = AsynchronousGossip(
        agents=4, update=exponential(1.0), gossip=[exponential(r) for r in (1.0, 2.0, 2.0, 3.0)]
    )
    events = gossip.simulate(events=300, seed=1)

    def run(mixing, **options):
        facts = {"model": p2p.models.affine(), "data": digits(), "algorithm": p2p.DGD(step_size=0.1), "rounds": 10}
        return p2p.Experiment(mixing=mixing, **(facts | options))

    static, local = run(metropolis(graphs.cycle(4))), {"algorithm": p2p.LocalSGD(0.1, steps=1), "rounds": 300}
    features = static.features()
    schedule = p2p.schedules.one_peer_exponential(4)
    predicted = p2p.predictions(static, features=features)
    lossy = run(p2p.push_weights(graphs.directed_ring(4)), algorithm=p2p.SparsePush(0.1, p2p.TopK(0.1)))
    ten = run(metropolis(graphs.cycle(20)), data=digits(agents=20, samples=100, classes=range(10), by="iid"))
    regression = p2p.data.load("regression", samples=12, test_samples=0).split(agents=4)

    columns = {"spectral_gap": [0.5, 0.2], "effective_neighbours": [3.0, 2.0], "rounds": [12.0, np.nan]}
    rows = pd.DataFrame(columns, index=["metropolis(graph)", "lazy(metropolis(graph))"])

    etas = {"gradient_delay": [0, 1], "step_size": [0.1, 1.0]}
    radius = xr.DataArray([[0.9, 1.0], [0.95, 1.3]], etas, tuple(etas))
    margins = [Margin(3, 0.3, 0.1, exact=exact) for exact in (True, False)]
    late = {name: Lateness(0.5, 2.0, 4.0, of) for name, of in zip(("gradients", "messages"), margins, strict=True)}

    def system(mixing):
        return p2p.linear_system(static.algorithm, mixing, features, static.data)

    return {
        "graph": graphs.cycle(4),
        "directed graph": graphs.directed_ring(4),
        "mixing report": p2p.check_mixing(static.mixing),
        "schedule report": p2p.check_mixing(schedule),
        "experiment": static,
        "experiment, schedule": run(schedule),
        "experiment, clocks": run(gossip, **local),
        "experiment, events": run(events, **local),
        "experiment, many": ten,
        "experiment, regression": run(static.mixing, data=regression),
        "system": system(static.mixing),
        "system, period": system(schedule),
        "system, drawn": system(p2p.schedules.sequence([static.mixing, schedule.at(0)])),
        "trajectory": predicted["rounds"],
        "comparison": p2p.compare(*predicted.values()),
        "stability": p2p.stability(static, features=features, modes=2),
        "map": StabilityMap(radius, np.array([1.0, 0.5]), np.array([0.8, np.nan])),
        "communication": p2p.communication(lossy),
        "timeliness": p2p.Timeliness(run(events, **local), 1.0, np.eye(4), late),
        "mixings": p2p.MixingComparison({}, rows, 0.1),
        "clocks": gossip,
        "events": events,
        "events, many": gossip.simulate(events=1000, seed=1),
        "objective": Objective(static, features=features),
    }


NAMES = [
    *("graph", "directed graph", "mixing report", "schedule report", "experiment", "experiment, schedule"),
    *("experiment, clocks", "experiment, events", "experiment, many", "experiment, regression"),
    *("system", "system, period", "system, drawn", "trajectory", "comparison", "stability", "map"),
    *("communication", "timeliness", "mixings", "clocks", "events", "events, many", "objective"),
]


@pytest.mark.parametrize("name", NAMES)
def test_results_read_and_plot(name, results):
    assert set(NAMES) == set(results)
    result = results[name]
    lines = repr(result).splitlines()
    assert max(map(len, lines)) <= 120
    if not isinstance(result, Report) and name not in ("comparison", "mixings"):  # those are tables by design
        assert len(lines) <= 3
    Tags(result._repr_html_())
    if name == "objective":
        return
    drawn = result.plot()
    axes = [drawn] if isinstance(drawn, Axes) else drawn
    assert all(isinstance(ax, Axes) for ax in axes)
    for ax in axes:
        assert not ax.axison or (ax.get_xlabel() and (ax.get_ylabel() or ax.get_subplotspec().colspan.start > 0))
    axes[0].figure.draw_without_rendering()


def test_names_in_a_trajectory_are_escaped():
    found = trajectory("trained", 2)
    found.dataset.attrs["algorithm"] = "Own<b>"  # what a file says
    assert "Own&lt;b&gt;" in found._repr_html_()
    assert "Own<b>" not in found._repr_html_()


def test_samples_are_counted_in_whole_numbers(results):
    for name in ("experiment", "experiment, many", "experiment, regression"):
        axes = results[name].plot()
        counted = axes[-1].figure.axes[2].yaxis if name == "experiment, many" else axes[-1].yaxis  # the colour bar
        np.testing.assert_array_equal(counted.get_ticklocs() % 1, 0)


def test_extreme_eigenvalues_are_called_so_and_a_radius_below_one_is_not_one(results):
    report = results["stability"]
    assert "extreme" not in report.plot()[0].get_title()
    few = dataclasses.replace(report, eigenvalues=np.array([0.999992, -0.5]))
    ax = few.plot()[0]
    assert ax.get_title() == "2 extreme eigenvalues of a round"
    assert ax.get_xlabel().endswith("spectral radius 0.999992")


def test_a_system_shows_its_eigenvalues(results):
    system = results["system"]
    drawn = np.sort(np.concatenate([line.get_xdata() for line in system.plot().lines if line.get_marker() in "oX"]))
    np.testing.assert_allclose(drawn, np.linalg.eigvalsh(system.matrix()), atol=1e-10)
    extreme = eigenvalues(system, dense=0)
    assert extreme.min() == pytest.approx(drawn[0], rel=1e-3)
    assert "DGD(step_size=0.1)" in repr(system)


def test_graphs_stay_graphs():
    graph = graphs.from_spec("erdos_renyi:8,0.5,seed=1")
    assert repr(graph) == f"Graph(erdos_renyi:8,0.5,seed=1, 8 agents, {graph.number_of_edges()} links)"
    assert nx.utils.graphs_equal(graphs.from_spec(graph.spec), graph)
    again = pickle.loads(pickle.dumps(graph))
    assert (again.spec, list(again.edges)) == (graph.spec, list(graph.edges))
    for part in (graph.copy(), graph.subgraph([5, 2, 3]), graph.to_directed(), nx.relabel_nodes(graph, {0: "a"})):
        assert isinstance(part, graphs.Graph | graphs.DiGraph)
        assert not part.spec  # it need not be that graph any more
        part.plot()
    np.testing.assert_array_equal(metropolis(graph), metropolis(nx.Graph(graph)))


def test_a_graph_has_the_widths_of_its_weights_in_its_own_order():
    graph = graphs.path(3).subgraph([2, 1, 0])
    named = nx.relabel_nodes(graphs.path(3), {0: "a", 1: "b", 2: "c"})
    for drawn in (graph, named):
        W = np.diag([0.9, 0.6, 0.7])
        W[0, 1] = W[1, 0] = 0.1
        W[1, 2] = W[2, 1] = 0.3
        widths = [line.get_linewidth() for line in drawn.plot(W).lines[1::2]]
        assert widths == pytest.approx([0.9, 2.7])
    with pytest.raises(ValueError, match=r"shape \(2, 2\) and the graph 3 agents"):
        named.plot(np.eye(2))


def test_the_style_sheet_is_one_for_all():
    with plt.style.context("ntkp2p.base.ntkp2p"):
        cycle = list(plt.rcParams["axes.prop_cycle"])
        assert len({(line["color"], line["linestyle"]) for line in cycle}) == len(cycle) >= 7
        assert len({line["linestyle"] for line in cycle[:4]}) == 4
        file = io.BytesIO()
        plots.agent_curves([trajectory("trained", 4)]).figure.savefig(file, format="svg")
    assert b">trained</text>" in file.getvalue()  # and not its outlines
