"""State transition in closed form beside what else takes a linear system through time: a table, JSON, a verdict.

    python benchmarks/transition.py [--case '64-*'] [--limit MINUTES] [--seconds 20] [--list] [--out FILE]
    python benchmarks/transition.py --draw figures/scaling.png

Cases run in the order of their importance, each in a process of its own, until the time is up; what the file has of
other cases is kept. This file starts the processes and reads what they say, so that their peak memory is theirs alone.
"""

import argparse
import fnmatch
import json
import math
import os
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path

from ntk import death, write

BEGUN = time.perf_counter()
HERE = Path(__file__).resolve().parent
GIB = 2**30
ROUNDS, FLOW, BOTH = "ours, rounds", "ours, flow", "ours, both"
OURS = [ROUNDS, FLOW, BOTH, "ours, measured", "ours, predictions"]
RIVALS = {
    "simulation": ROUNDS,
    "training": ROUNDS,
    "expm": FLOW,
    "expm_multiply": FLOW,
    "Tsit5": FLOW,
    "Kvaerno5": FLOW,
}
#: Bytes that a basis may take where a million states shall stay within `PEAK`.
MEMORY, PEAK = int(4.9 * GIB), 6 * GIB
#: What a study varies, the other axes staying where they are.
STUDIES = {
    "agents": [8, 16, 32, 64, 128, 256, 512],
    "samples": [256, 512, 1024, 2048, 4096],
    "horizon": [100, 1000, 10_000, 100_000],
    "times": [10, 100, 1000, 10_000],
}
COMPARED = [ROUNDS, BOTH, "simulation", "expm_multiply", "Tsit5"]


def cases() -> dict[str, dict]:
    """All that can be measured, the most important first."""
    first = ["64-cycle-1e5-10000", "512-cycle-1e5-10000", "64-cycle-1e6-10000", "times", "figure2"]
    then = ["8-cycle-1e3-10000", "8-cycle-1e3-100", "64-cycle-1e3-10000", "512-cycle-1e3-10000", "8-cycle-1e5-10000"]
    then += [f"{q}-{graph}-1e5-10000" for q, graph in product((64, 512), ("exponential", "random_geometric"))]
    then += [f"scaling-{axis}-{value}" for axis, values in STUDIES.items() for value in values]
    then += ["64-cycle-1e5-100", "512-cycle-1e5-100", "512-cycle-1e6-10000"]
    grid = {
        f"{q}-{graph}-{states}-{horizon}": systems(q, graph, states, horizon)
        for horizon, states, graph, q in product(
            (10_000, 100), ("1e3", "1e5", "1e6"), ("cycle", "exponential", "random_geometric"), (64, 512, 8)
        )
    }
    known = grid | {f"scaling-{axis}-{value}": scaling(axis, value) for axis in STUDIES for value in STUDIES[axis]}
    known["times"] = systems(64, "cycle", "1e5", 10_000) | {"kind": "times", "counts": [10, 10_000], "repetitions": 3}
    known["figure2"] = {"kind": "figure2", "width": 4096, "graphs": ["cycle", "star", "complete"]}
    ordered = [*first, *then, *(name for name in known if name not in {*first, *then})]
    return {name: known[name] for name in ordered}


def systems(agents: int, graph: str, states: str, horizon: int) -> dict:
    million = states == "1e6"
    problem = {"agents": agents, "graph": graph, "states": int(float(states)), "outputs": 1 if states == "1e3" else 10}
    routes = [route for route in OURS if not million or route != "ours, predictions"] + list(RIVALS)
    memory = MEMORY if million else None
    return {
        "kind": "case",
        "problem": problem,
        "horizon": horizon,
        "times": 100,
        "routes": routes,
        "memory": memory,
    }


def scaling(axis: str, value: int) -> dict:
    """One point of a study: 32 features, or where the samples vary an eighth of them."""
    agents = value if axis == "agents" else 16
    samples = value if axis == "samples" else 1024
    problem = {"agents": agents, "graph": "cycle", "outputs": 10, "samples": samples}
    problem["states"] = 10 * agents * (samples // 8 if axis == "samples" else 32)
    at = {"horizon": 10_000, "times": 100} | ({axis: value} if axis in ("horizon", "times") else {})
    return {"kind": "case", "problem": problem, "routes": COMPARED, "memory": None} | at


def main() -> int:
    options = parse()
    known = cases()
    chosen = [name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in options.case)]
    if options.list:
        print("\n".join(chosen))
        return 0
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"cases": {}}
    if options.draw:
        draw(results["cases"], options.draw)
        return 0
    for name in chosen:
        if time.perf_counter() - BEGUN > 60 * options.limit:
            print(f"no time left for {name}", file=sys.stderr)
            continue
        print(f"{name}", file=sys.stderr)
        # 40 s without a word are no sign of trouble where a million states are solved to 1e-11.
        rows, machine = worker(known[name] | {"limit": options.seconds}, silence=60 * options.seconds)
        results["machine"] = machine or results.get("machine")
        results["cases"][name] = {"plan": known[name], "seconds": options.seconds, "rows": rows}
        results["cases"] = {name: results["cases"][name] for name in known if name in results["cases"]}
        write(options.out, results)
        options.out.with_suffix(".txt").write_text(report(results) + "\n", encoding="utf-8")
    print(report(results))
    return int(any("error" in row and row["error"] > 1e-6 for case in results["cases"].values() for row in ours(case)))


def ours(case: dict) -> list[dict]:
    return [row for name, row in case["rows"].items() if name in OURS]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--case", action="append", help="patterns of names, see --list (default: all)")
    parser.add_argument("--limit", type=float, default=60, help="minutes after which no case is begun (default 60)")
    parser.add_argument("--seconds", type=float, default=20, help="seconds beyond which a rival is extrapolated")
    parser.add_argument("--list", action="store_true", help="name the cases, the most important first")
    parser.add_argument("--draw", type=Path, help="draw the cost from what was measured, and measure nothing")
    parser.add_argument("--out", type=Path, default=HERE / "transition.json", help="JSON file; its table is beside it")
    options = parser.parse_args()
    options.case = options.case or ["*"]
    return options


def worker(plan: dict, silence: float) -> tuple[dict, dict | None]:
    """Run one case in a process, and gather its rows by route."""
    command = [sys.executable, "-W", "ignore", str(HERE / "_transition_case.py"), json.dumps(plan)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    drain.start()
    rows: dict[str, dict] = {}
    machine, current, silent = None, "setting up", threading.Event()

    def give_up() -> None:
        silent.set()
        process.kill()

    timer = threading.Timer(silence, give_up)
    timer.start()
    for text in process.stdout:
        timer.cancel()
        line = json.loads(text)
        if "machine" in line:
            machine = line["machine"]
        elif "begins" in line:
            current = line["begins"]
            print(f"  {time.perf_counter() - BEGUN:7.1f} s  {current}", file=sys.stderr)
        else:
            gather(rows.setdefault(line["ends"], {}), line["row"])
        timer = threading.Timer(silence, give_up)
        timer.start()
    code = process.wait()
    timer.cancel()
    drain.join(timeout=5)
    if code:
        cause = f"nothing came in {silence:.0f} s" if silent.is_set() else death(code, errors)
        rows.setdefault(current, {})["note"] = f"did not run: {cause}"
    return rows, machine


def gather(row: dict, news: dict) -> None:
    again = news.pop("again", math.inf)
    row.update(news)
    if again < math.inf:
        row["seconds"] = min(row["seconds"], again)


def report(results: dict) -> str:
    found = results["cases"]
    machine = results.get("machine") or {}
    versions = ", ".join(f"{name} {number}" for name, number in machine.get("versions", {}).items())
    lines = [
        f"{machine.get('device')} ({machine.get('processor')}), {machine.get('cores')} cores",
        f"Python {machine.get('python')}, {versions}",
        "",
        *table([line for name, case in found.items() if is_grid(name, case) for line in case_lines(name, case)]),
        "",
        *special_lines(found),
        "",
        "Targets",
        *verdict(found),
    ]
    return "\n".join(lines)


def is_grid(name: str, case: dict) -> bool:
    return case["plan"]["kind"] == "case" and not name.startswith("scaling")


HEADER = ["agents", "graph", "states", "rounds", "route", "seconds", "ratio to ours", "error", "note"]


def table(lines: list[list[str]]) -> list[str]:
    cells = [HEADER, *lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    left = {HEADER.index(name) for name in ("graph", "route", "note")}
    text = [
        "  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    return [line.rstrip() for line in (text[0], "-" * len(text[0]), *text[1:])]


def case_lines(name: str, case: dict) -> list[list[str]]:
    problem, rows = case["plan"]["problem"], case["rows"]
    setting = rows.get("setting up", {})
    key = [str(problem["agents"]), problem["graph"], str(setting.get("states", "—")), str(case["plan"]["horizon"])]
    lines = []
    for route in case["plan"]["routes"]:
        row = rows.get(route, {"note": "did not run"})
        error = f"{row['error']:.0e}" if "error" in row else ""
        lines.append([*key, route, seconds_text(row), ratio_text(rows, route), error, note(case, route)])
    return lines


def note(case: dict, route: str) -> str:
    row, setting = case["rows"].get(route, {}), case["rows"].get("setting up", {})
    parts = [row.get("note", "")]
    if route == ROUNDS and "model" in setting:
        parts.append(f"{setting['model']}, {setting['rank']} features of {setting['samples']} samples")
    if "basis" in row:
        parts.append(f"basis {row['basis']}, peak {row['peak_bytes'] / GIB:.1f} GiB")
    if row.get("estimated"):
        parts.append(f"{100 * row['share']:.2g} % run")
    return "; ".join(filter(None, parts))


def seconds_text(row: dict) -> str:
    return f"{'≈ ' if row.get('estimated') else ''}{row['seconds']:.3g}" if "seconds" in row else "—"


def ratio(rows: dict, route: str) -> float | None:
    """How many times as long as ours, of the same kind of time."""
    one, other = rows.get(route, {}).get("seconds"), rows.get(RIVALS.get(route, ROUNDS), {}).get("seconds")
    return one / other if one and other else None


def ratio_text(rows: dict, route: str) -> str:
    found = ratio(rows, route)
    return "—" if found is None else f"{'≈ ' if rows[route].get('estimated') else ''}{found:.3g}"


def special_lines(found: dict) -> list[str]:
    lines = []
    if rows := found.get("times", {}).get("rows"):
        told = ", ".join(f"{name}: {seconds_text(row)} s" for name, row in rows.items() if name != "setting up")
        lines.append(f"output times (64 agents, cycle, 1e5 states, 10⁴ rounds)  {told}")
    if rows := found.get("figure2", {}).get("rows"):
        for graph in found["figure2"]["plan"]["graphs"]:
            predicted, trained = rows.get(f"{graph}, predicted", {}), rows.get(f"{graph}, trained", {})
            features = predicted.get("features_seconds", math.nan)
            first = predicted.get("first_call_seconds", math.nan)
            lines.append(
                f"Figure 2, width 4096, {graph}: predicted in {seconds_text(predicted)} s, features {features:.3g} s "
                f"of it (a process's first call {first:.3g} s), trained in {seconds_text(trained)} s"
            )
    return lines


def verdict(found: dict) -> list[str]:
    lines = []
    for name, case in found.items():
        if name.endswith("-1e5-10000"):
            for route in ("expm_multiply", "simulation"):
                lines.append(judged(f"{name}: times faster than {route}", ratio(case["rows"], route), 10))
        if name.endswith("-1e6-10000"):
            peaks = [row["peak_bytes"] / GIB for row in ours(case) if "peak_bytes" in row]
            lines.append(judged(f"{name}: peak memory in GiB", max(peaks, default=None), PEAK / GIB, most=True))
    rows = found.get("times", {}).get("rows", {})
    for how in ("solved", "measured", "predicted"):
        few, many = (rows.get(f"{count}, {how}", {}).get("seconds") for count in (10, 10_000))
        if few and many:
            lines.append(judged(f"10,000 output times beside 10, {how}: times the cost", many / few, 1.2, most=True))
    for graph in found.get("figure2", {}).get("plan", {}).get("graphs", []):
        rows = found["figure2"]["rows"]
        pair = [rows.get(f"{graph}, {how}", {}).get("seconds") for how in ("trained", "predicted")]
        share = pair[0] / pair[1] if all(pair) else None
        lines.append(judged(f"Figure 2 at width 4096, {graph}: times faster than training", share, 100))
    return lines


def judged(label: str, value: float | None, goal: float, *, most: bool = False) -> str:
    number = "—" if value is None else f"{value:.3g}"
    met = value is not None and (value <= goal if most else value >= goal)
    word = "not measured" if value is None else "met" if met else "not met"
    return f"  {label + (' ≤ ' if most else ' ≥ ') + f'{goal:g}':<70} {number:>7}  {word}"


LABELS = {
    "agents": "agents $Q$",
    "samples": "samples $N$, with $N/8$ features",
    "horizon": "rounds",
    "times": "output times",
}
STYLES = {
    BOTH: ("o", "-", "0.0", "closed form, rounds and flow"),
    "simulation": ("s", "--", "0.35", "simulated rounds"),
    "expm_multiply": ("^", "-.", "0.55", "expm_multiply"),
    "Tsit5": ("D", ":", "0.55", "diffrax Tsit5"),
}


def draw(found: dict, path: Path) -> None:
    """Cost against agents, samples, rounds and output times, with the slopes of straight lines through the points."""
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.lines import Line2D

    from ntkp2p.base.style import STYLE

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(9.0, 7.4), layout="constrained", sharey=True)
        for ax, (axis, values) in zip(axes.flat, STUDIES.items(), strict=True):
            for route, (marker, line, grey, _) in STYLES.items():
                rows = {v: found.get(f"scaling-{axis}-{v}", {}).get("rows", {}).get(route, {}) for v in values}
                x, y = np.array([(v, row["seconds"]) for v, row in rows.items() if "seconds" in row]).reshape(-1, 2).T
                if len(x) < 2:
                    continue
                slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
                whole = np.array([not rows[v].get("estimated") for v in x.astype(int)])
                ax.loglog(x, np.exp(intercept) * x**slope, line, color=grey, linewidth=1.1)
                ax.loglog(x[whole], y[whole], marker, color=grey, markersize=5)
                ax.loglog(x[~whole], y[~whole], marker, color=grey, markersize=5, markerfacecolor="white")
                ax.plot([], [], marker=marker, linestyle=line, color=grey, markersize=5, label=f"{slope:.2f}")
            ax.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel="seconds" if ax in axes[:, 0] else "")
            ax.set_xticks(values, [f"{v:,}" for v in values])
            ax.minorticks_off()
            if ax.lines:  # above the panel, where no point can be
                ax.legend(ncols=len(STYLES), loc="lower center", bbox_to_anchor=(0.5, 1.0), title="fitted slopes")
        names = [
            Line2D([], [], marker=marker, linestyle=line, color=grey, markersize=5, label=label)
            for marker, line, grey, label in STYLES.values()
        ]
        figure.legend(handles=names, loc="outside lower center", ncols=len(names))
        figure.suptitle(
            "A linear system of DGD to error 1e-6: 16 agents on a cycle, 32 features, 1,024 samples, 10,000 rounds,\n"
            "100 output times where these do not vary (open markers: extrapolated from a share of the run)"
        )
        figure.savefig(path)
        plt.close(figure)


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.exit(main())
