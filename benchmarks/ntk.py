"""Our empirical kernel beside neural-tangents, J Jᵀ and the rate of matrix products: a table, JSON and a verdict.

    python benchmarks/ntk.py [--quick] [--only mlp|cnn] [--samples 512,2048] [--dtype float32|float64] [--out FILE]

Ratios are of times taken in one process, on the same arrays. This file starts the processes and reads what they say;
it imports nothing that computes, so that their peak memory is theirs alone.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

BEGUN = time.perf_counter()
HERE = Path(__file__).resolve().parent
TANGENTS = ["nt structured derivatives", "nt jacobian contraction", "nt NTK-vector products"]
RIVALS = [*TANGENTS, "J Jᵀ"]
LIMIT = "matrix products"
FORMS = {"mlp": ["ours"], "cnn": ["ours", "lax.conv"]}
DTYPES = {"mlp": ["float32", "float64"], "cnn": ["float64", "float32"]}
FORM_NAMES = {"ours": "patches", "lax.conv": "lax.conv"}


def main() -> int:
    options = parse()
    cases, machine, hung = [], {}, set()
    for network in options.only:
        for samples in options.samples:
            for dtype in options.dtype or DTYPES[network][: 1 if options.quick else None]:
                case = {"network": network, "samples": samples, "dtype": dtype}
                print(f"{network} N={samples} {dtype}", file=sys.stderr)
                case["rows"] = run_case(case, options, machine, hung)
                cases.append(case)
    print(heading(machine, options))
    print(table(cases))
    print(verdict(cases))
    if options.out:
        write(options.out, {"machine": machine, "quick": options.quick, "cases": cases})
    rows = [row for case in cases for row in case["rows"]]
    return int(any(row.get("differs") or (row["route"] == "ours" and not row.get("seconds")) for row in rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="N = 128, one repetition, no file unless --out")
    parser.add_argument("--only", choices=sorted(FORMS), help="one of the two networks")
    parser.add_argument("--samples", type=sizes, help="comma-separated N (default 512,2048)")
    parser.add_argument("--dtype", choices=["float32", "float64"], help="one of the two dtypes")
    parser.add_argument("--out", type=Path, help=f"JSON file (default {HERE.name}/ntk.json)")
    parser.add_argument("--memory", type=float, help="GiB that a rival may take (default 40 %% of what is free)")
    parser.add_argument("--limit", type=float, default=120, help="seconds that a rival may take (default 120)")
    options = parser.parse_args()
    options.only = [options.only] if options.only else ["mlp", "cnn"]
    options.samples = options.samples or ([128] if options.quick else [512, 2048])
    options.dtype = [options.dtype] if options.dtype else None
    options.memory = int(2**30 * options.memory) if options.memory else int(0.4 * free_memory())
    options.out = options.out or (None if options.quick else HERE / "ntk.json")
    return options


def sizes(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if min(found) < 16:
        raise argparse.ArgumentTypeError("N must be at least 16")
    return found


def free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def run_case(case: dict, options: argparse.Namespace, machine: dict, hung: set[tuple]) -> list[dict]:
    """All rows of a case. A route that takes its process down with it is noted, and the rest go on in a new one."""
    forms = FORMS[case["network"]][: 1 if options.quick else None]
    left = [[LIMIT, "ours"], *([route, form] for route in RIVALS for form in forms)]
    plan = case | {
        "memory": options.memory,
        "limit": 2 if options.quick else options.limit,
        "block": 16 if options.quick else case["samples"],
        "repetitions": 1 if options.quick else 5,
        "seconds": 20,
    }
    rows: dict[tuple, dict] = {}
    while left:
        # A form of the network whose derivatives never came is not waited for again, route by route.
        for key in [key for key in left if key[0] in RIVALS and (case["network"], case["dtype"], key[1]) in hung]:
            rows[tuple(key)] = {"note": "not tried: this form's derivatives did not come in time before"}
            left.remove(key)
        died = worker(plan | {"routes": left}, rows, machine, silence=options.limit + 60)
        left = [key for key in left if tuple(key) not in rows]
        if died is None or died[0] == "ours":
            break
        if rows[died].get("silent"):
            hung.add((case["network"], case["dtype"], died[1]))
    return [{"route": route, "form": form} | row for (route, form), row in rows.items()]


def worker(plan: dict, rows: dict[tuple, dict], machine: dict, silence: float) -> tuple | None:
    """Run one process, gather its rows, and name the route it died in, if it did."""
    command = [sys.executable, str(HERE / "_case.py"), json.dumps(plan)]
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, encoding="utf-8"
    )
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    drain.start()
    current, silent = ("ours", "ours"), False

    def give_up():
        nonlocal silent
        silent = True
        process.kill()

    def expect_line():
        timer = threading.Timer(silence, give_up)
        timer.daemon = True
        timer.start()
        return timer

    timer = expect_line()
    for text in process.stdout:
        timer.cancel()
        line = json.loads(text)
        if "machine" in line:
            machine.update(line["machine"])
        elif "begins" in line:
            current = tuple(line["begins"])
            print(f"  {time.perf_counter() - BEGUN:7.1f} s  {' · '.join(current)}", file=sys.stderr)
        else:
            gather(rows, tuple(line["ends"]), line["row"])
        timer = expect_line()
    code = process.wait()
    timer.cancel()
    drain.join(timeout=5)
    if code == 0 or current == ("ours", "again"):
        return None
    cause = f"nothing came in {silence:.0f} s" if silent else death(code, errors)
    if current[0] != "ours" or ("ours", "ours") not in rows:
        rows[current] = {"note": f"did not run: {cause}", "silent": silent}
    return current


def death(code: int, errors: list[str]) -> str:
    if code == -9:
        return "its process was killed, out of memory most likely"
    if code < 0:
        return f"its process died of signal {-code}"
    return f"its process failed: {errors[-1].strip()[:160] if errors else code}"


def gather(rows: dict[tuple, dict], key: tuple, row: dict) -> None:
    ours = rows.get(("ours", "ours"))
    if key[0] == "ours" and ours:
        ours["seconds"] = min(ours["seconds"], row["seconds"])
    else:
        rows[key] = row


def seconds_of(case: dict, *routes: str) -> dict | None:
    """The fastest row of some routes, over all forms of the network."""
    rows = [row for row in case["rows"] if row["route"] in routes and row.get("seconds") and not row.get("differs")]
    return min(rows, key=lambda row: row["seconds"], default=None)


def heading(machine: dict, options: argparse.Namespace) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine.get("versions", {}).items())
    lines = [
        f"{machine.get('device')} ({machine.get('processor')}), {machine.get('cores')} cores",
        f"Python {machine.get('python')}, {versions}",
        f"a rival may take {options.memory / 2**30:.1f} GiB and {options.limit:.0f} s",
    ]
    return "\n".join(
        [*lines, "--quick: too small to judge by, rivals in blocks of 16, one dtype and one form of each network"]
        if options.quick
        else lines
    )


def table(cases: list[dict]) -> str:
    header = ["network", "N", "dtype", "route", "seconds", "ratio to ours", "difference", "note"]
    cells = [header, *(line for case in cases for line in case_lines(case))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    numbers = (1, 4, 5, 6)
    text = [
        "  ".join(cell.rjust(width) if i in numbers else cell.ljust(width) for i, (cell, width) in paired(line, widths))
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in ["", text[0], "-" * len(text[0]), *text[1:]])


def paired(line: list[str], widths: list[int]):
    return enumerate(zip(line, widths, strict=True))


def case_lines(case: dict) -> list[list[str]]:
    ours = seconds_of(case, "ours")
    lines = []
    for route in ("ours", LIMIT, *RIVALS):
        rows = [row for row in case["rows"] if row["route"] == route]
        fastest = seconds_of(case, route) or (rows[0] if rows else {"note": "did not run: our own kernel did not come"})
        others = [form_note(row) for row in rows if row is not fastest]
        note = "; ".join(filter(None, [fastest.get("note"), form_name(case, fastest), *others, first_call(fastest)]))
        difference = fastest.get("difference")
        lines.append(
            [
                case["network"],
                str(case["samples"]),
                case["dtype"],
                route,
                time_text(fastest),
                ratio_text(fastest, ours),
                "" if difference is None else f"{difference:.0e}",
                note,
            ]
        )
    return lines


def form_name(case: dict, row: dict) -> str:
    return FORM_NAMES[row["form"]] if len(FORMS[case["network"]]) > 1 and row.get("route") in RIVALS else ""


def form_note(row: dict) -> str:
    told = f"{time_text(row)} s" if row.get("seconds") else row.get("note", "")
    return f"{FORM_NAMES[row['form']]}: {told}"


def first_call(row: dict) -> str:
    return f"first call {row['first_call_seconds']:.2f} s" if "first_call_seconds" in row else ""


def time_text(row: dict) -> str:
    if not row.get("seconds"):
        return "—"
    return f"{'≈ ' if row.get('estimated') else ''}{row['seconds']:.3g}"


def ratio_text(row: dict, ours: dict | None) -> str:
    if not row.get("seconds") or not ours:
        return "—"
    return f"{'≈ ' if row.get('estimated') else ''}{row['seconds'] / ours['seconds']:.3g}"


def verdict(cases: list[dict]) -> str:
    mlp = [case for case in cases if case["network"] == "mlp"]
    cnn = [case for case in cases if case["network"] == "cnn"]
    lines = ["", "Targets"]
    lines += target("MLP, times faster than neural-tangents' best", mlp, times_faster(*TANGENTS), 2.5)
    lines += target("MLP, times faster than J Jᵀ", mlp, times_faster("J Jᵀ"), 500)
    lines += target("MLP, % of the matrix-product rate of the full product", mlp, share_of_limit, 100)
    lines += target("CNN, times faster than the fastest rival", cnn, times_faster(*RIVALS), 2)
    lines += target("all, stated memory / peak memory", cases, memory_margin, 1)
    return "\n".join(lines)


def target(name: str, cases: list[dict], measure, goal: float) -> list[str]:
    lines = []
    for case in cases:
        found, how = measure(case)
        judged = "not measured" if found is None else "met" if found >= goal else "not met"
        number = "—" if found is None else f"{found:.3g}"
        label = f"{name} ≥ {goal:g}"
        lines.append(f"  {label:<62} {case['samples']:>5} {case['dtype']}  {number:>7}  {judged:<12}  {how}".rstrip())
    return lines


def times_faster(*routes: str):
    def measure(case):
        ours, rival = seconds_of(case, "ours"), seconds_of(case, *routes)
        if not ours or not rival:
            return None, ""
        how = rival["route"] + (", estimated" if rival.get("estimated") else "")
        return rival["seconds"] / ours["seconds"], how

    return measure


def share_of_limit(case: dict) -> tuple[float | None, str]:
    ours, limit = seconds_of(case, "ours"), seconds_of(case, LIMIT)
    return (100 * limit["seconds"] / ours["seconds"], "") if ours and limit else (None, "")


def memory_margin(case: dict) -> tuple[float | None, str]:
    ours = seconds_of(case, "ours")
    if not ours:
        return None, ""
    peak, stated = ours["peak_bytes"], ours["stated_peak_bytes"]
    return stated / max(peak, 1), f"{case['network']}: peak {peak / 2**20:.0f} MiB, stated {stated / 2**20:.0f} MiB"


def write(path: Path, results: dict) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
