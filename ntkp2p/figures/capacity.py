"""How stale agents are: it grows with their number unless each gossips at a rate that grows like log n.

Times are in units of the mean time that an agent's computation takes, μ = 1. The law is that of Mitra and Ulukus,
"Scale-robust timely asynchronous decentralized learning", arXiv 2404.19749.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntkp2p.asynchrony import (
    AsynchronousGossip,
    Events,
    Exponential,
    expected_staleness,
    gossip_rate_for,
    staleness,
)
from ntkp2p.base.style import BLUE, ORANGE, VERMILLION

if TYPE_CHECKING:
    from ntkp2p.figures.study import Drawn, Study

#: By name: the gossip rate λ that each of n agents has, per mean computation; 1 for four agents under all of them.
CAPACITIES: dict[str, Callable[[int], float]] = {
    "λ = 1": lambda n: 1.0,
    "λ ∝ log n": lambda n: float(np.log(n) / np.log(4)),
    "λ ∝ n": lambda n: n / 4,
}
MARKERS = dict(zip(CAPACITIES, "osD", strict=True))
COLOURS = dict(zip(CAPACITIES, (VERMILLION, ORANGE, BLUE), strict=True))
SCHEMES = {"push": "randomised", "opportunistic": "opportunistic"}
#: Opportunities, of all agents together, up to which a draw is made: those that pass in silence cost as much as others.
MOST = 4e6
#: Updates of all agents together over which a mean staleness is simulated: about 2 % off.
UPDATES = 4000


def scaling(study: Study, /) -> Drawn:
    """Mean staleness against n under three laws of capacity, the capacity that holds it, and its distribution."""
    agents = study.setting.staleness_agents
    found = xr.Dataset(
        {
            "mean_staleness": _means(study),
            "capacity": _capacities(study),
            "share": _distributions(agents[len(agents) // 2]),
        }
    )
    fits = _fits(found["capacity"])
    study.rows += fits
    return _draw_scaling(found, fits), {"": found}


def _draw_scaling(found: xr.Dataset, fits: list[dict[str, Any]]) -> Figure:
    figure, (means, held, shares) = plt.subplots(1, 3, figsize=(13.2, 4.3), layout="constrained")
    _draw_means(means, found["mean_staleness"])
    _draw_capacities(held, found["capacity"], fits)
    _draw_shares(shares, found["share"])
    figure.suptitle("How stale agents are about one another: complete graph, memoryless clocks of mean 1 and 1/λ")
    return figure


def _mean_staleness(scheme: str, n: int, rate: float, updates: int, seed: int = 0) -> float:
    """Simulated, over so many updates of all agents together, the time left out in which it grows from nothing."""
    events, since = _draw_of(scheme, n, rate, updates, seed)
    return staleness(events, since=since, distribution=False).mean


def _draw_of(scheme: str, n: int, rate: float, updates: int, seed: int) -> tuple[Events, float]:
    """Events, and since when staleness is what it stays."""
    plan = AsynchronousGossip(agents=n, update=Exponential(1.0), gossip=Exponential(rate), scheme=scheme)
    # News takes H/λ on average to spread; if one agent speaks at a time it spreads in n times that.
    spread = expected_staleness(n, 1.0, rate) * (n if scheme == "opportunistic" else 2)
    since = 2 * spread
    return plan.simulate(duration=since + max(updates / n, 2 * spread), seed=seed), since


def _means(study: Study) -> xr.DataArray:
    setting = study.setting
    agents = list(setting.staleness_agents)
    found = xr.DataArray(
        np.full((2, len(CAPACITIES), len(agents)), np.nan),
        coords={"scheme": list(SCHEMES), "law": list(CAPACITIES), "agents": agents},
        attrs={"long_name": "mean staleness", "units": "updates"},
    )
    for scheme, (law, capacity), n in product(SCHEMES, CAPACITIES.items(), agents):
        study.progress(f"staleness, {SCHEMES[scheme]}, {law}", n, agents[-1])
        rate = capacity(n)
        # Fewer where many messages come between two updates.
        updates = min(UPDATES, round(1e6 / rate))
        alone = 4 * n * expected_staleness(n, 1.0, rate) + updates / n
        if scheme == "push" or n * (1 + rate) * alone < MOST:
            found.loc[{"scheme": scheme, "law": law, "agents": n}] = _mean_staleness(scheme, n, rate, updates)
    return found


def _capacities(study: Study) -> xr.DataArray:
    """The λ at which the mean staleness is 1, found by simulation, by scheme, n and seed."""
    setting = study.setting
    agents, seeds = list(setting.staleness_agents), range(setting.staleness_seeds)
    found = xr.DataArray(
        np.full((2, len(agents), len(seeds)), np.nan),
        coords={"scheme": list(SCHEMES), "agents": agents, "seed": list(seeds)},
        attrs={"long_name": "gossip rate that holds the mean staleness at 1", "units": "messages per update"},
    )
    for scheme, n, seed in product(SCHEMES, agents, seeds):
        if scheme == "push" or n <= setting.staleness_opportunistic:
            study.progress(f"staleness, capacity, {SCHEMES[scheme]}, {n} agents", seed + 1, len(seeds))
            found.loc[{"scheme": scheme, "agents": n, "seed": seed}] = _capacity(scheme, n, seed)
    return found


def _capacity(scheme: str, n: int, seed: int) -> float:
    """All looks have the same random numbers, so that the staleness falls with λ but for what the order changes."""
    guess = gossip_rate_for(1.0, n, 1.0) if scheme == "push" else float(n)

    def excess(log_rate: float) -> float:
        return float(np.log(_mean_staleness(scheme, n, np.exp(log_rate), UPDATES, seed)))

    root: Any = scipy.optimize.brentq(excess, np.log(guess / 1.5), np.log(1.5 * guess), xtol=0.01)
    return float(np.exp(root))


def _fits(capacity: xr.DataArray) -> list[dict[str, Any]]:
    """Each scheme's λ(n) as a + b log n and as a n^p, by least squares of relative errors."""
    rows = []
    for scheme in capacity["scheme"].values:
        rates = capacity.sel(scheme=scheme).dropna("agents").mean("seed")
        n, rate = rates["agents"].values.astype(float), rates.values
        found = {}
        for law, curve in LAWS.items():
            constants = scipy.optimize.curve_fit(curve, n, rate, p0=(1.0, 1.0), sigma=rate)[0]
            found[law] = constants, float(np.sqrt(np.mean((curve(n, *constants) / rate - 1) ** 2)))
        (a, b), of_log = found["log"]
        (c, p), of_power = found["power"]
        rows.append(
            {
                "run": f"capacity for staleness 1, {SCHEMES[scheme]}",
                "a + b log n: a": a,
                "b": b,
                "log law off by": of_log,
                "c n^p: c": c,
                "p": p,
                "power law off by": of_power,
            }
        )
    return rows


LAWS: dict[str, Callable[..., Any]] = {
    "log": lambda n, a, b: a + b * np.log(n),
    "power": lambda n, a, p: a * n**p,
}


def _distributions(n: int) -> xr.DataArray:
    """Share of time and pairs at each staleness, randomised, by law."""
    counted = {}
    for law, capacity in CAPACITIES.items():
        events, since = _draw_of("push", n, capacity(n), UPDATES, 0)
        counted[law] = staleness(events, since=since).distribution
    longest = max(map(len, counted.values()))
    shares = [np.pad(share, (0, longest - len(share))) for share in counted.values()]
    coords = {"law": list(counted), "staleness": np.arange(longest)}
    return xr.DataArray(np.array(shares), coords=coords, attrs={"agents": n})


def _draw_means(ax: Any, means: xr.DataArray) -> None:
    n = np.geomspace(means["agents"][0], means["agents"][-1], 200).round().astype(int)
    for law, capacity in CAPACITIES.items():
        theory = [expected_staleness(int(k), 1.0, capacity(int(k))) for k in n]
        ax.plot(n, theory, "-", color=COLOURS[law], linewidth=1)
        for scheme, face, line in (("push", COLOURS[law], "none"), ("opportunistic", "white", ":")):
            ax.plot(
                means["agents"],
                means.sel(law=law, scheme=scheme),
                marker=MARKERS[law],
                color=COLOURS[law],
                markerfacecolor=face,
                linestyle=line,
                linewidth=1,
                markersize=5.5,
            )
    handles = [Line2D([], [], marker=MARKERS[law], color=COLOURS[law], linestyle="none", label=law) for law in MARKERS]
    grey: dict[str, Any] = {"color": "0.3", "linewidth": 1}
    handles += [
        Line2D([], [], marker="o", label="randomised: simulated (filled), $H_{n-1}\\,μ/λ$ (line)", **grey),
        Line2D([], [], marker="o", linestyle=":", markerfacecolor="white", label="opportunistic: simulated", **grey),
    ]
    ax.legend(handles=handles, fontsize=7, loc="upper left")
    ax.set(xscale="log", yscale="log", xlabel="agents $n$", ylabel="mean staleness [updates]")
    ax.set_ylim(top=float(means.max()) * 40)
    ax.set_title("(a) three laws of capacity")
    _ticks_at(ax, means["agents"].values)


def _draw_capacities(ax: Any, capacity: xr.DataArray, fits: list[dict[str, Any]]) -> None:
    looks = {"push": ("o", BLUE), "opportunistic": ("s", VERMILLION)}
    for row, (scheme, (marker, colour)) in zip(fits, looks.items(), strict=True):
        rates = capacity.sel(scheme=scheme).dropna("agents")
        n, mean = rates["agents"].values.astype(float), rates.mean("seed")
        ax.plot(n, mean, marker, color=colour, markersize=5.5, label=f"{SCHEMES[scheme]}, simulated", zorder=3)
        fine = np.geomspace(n[0], n[-1], 100)
        log, power = (row["a + b log n: a"], row["b"]), (row["c n^p: c"], row["p"])
        texts = {
            "log": f"{log[0]:.2f} {'+' if log[1] > 0 else '−'} {abs(log[1]):.2f} log $n$".replace("-", "−"),
            "power": f"{power[0]:.2f} $n^{{{power[1]:.2f}}}$",
        }
        for (law, text), constants, line in zip(texts.items(), (log, power), ("-", "--"), strict=True):
            label = f"{text}: {row[f'{law} law off by']:.1%} off (rms)"
            ax.plot(fine, _visible(LAWS[law](fine, *constants)), line, color=colour, linewidth=1.1, label=label)
    ax.set(xscale="log", yscale="log", xlabel="agents $n$", ylabel="gossip rate $λ$ of an agent [per update]")
    ax.set_ylim(1, float(capacity.max()) * 12)
    ax.legend(fontsize=7, loc="upper left")
    ax.set_title("(b) what holds the mean staleness at 1")
    _ticks_at(ax, capacity["agents"].values)


def _ticks_at(ax: Any, agents: np.ndarray) -> None:
    ax.set_xticks(agents, [str(n) for n in agents])
    ax.minorticks_off()


def _visible(values: np.ndarray) -> np.ndarray:
    """On a logarithmic axis."""
    return np.where(values > 0, values, np.nan)


def _draw_shares(ax: Any, shares: xr.DataArray) -> None:
    for law in shares["law"].values:
        share = _visible(shares.sel(law=law).values)
        mean = float(shares.sel(law=law) @ shares["staleness"])
        ax.plot(
            shares["staleness"],
            share,
            marker=MARKERS[law],
            color=COLOURS[law],
            linestyle="-",
            linewidth=0.9,
            markersize=4,
            label=f"{law}: mean {mean:.2f}",
        )
    ax.set(yscale="log", ylim=(1e-5, 2), xlabel="staleness [updates]", ylabel="share of time and pairs")
    ax.legend(fontsize=7)
    ax.set_title(f"(c) randomised gossip of {shares.attrs['agents']} agents")
