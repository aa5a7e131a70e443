"""How long one waits before anything begins: `import ntkp2p`, its names, and the help, beside Python's and JAX's own.

python benchmarks/startup.py > benchmarks/startup.txt
"""

import subprocess
import sys
import time

#: Runs of each, in turn, so that what else the machine does meets all of them; the shortest counts.
RUNS = 5

CASES = {
    "python -c pass": ["-c", "pass"],
    "import jax": ["-c", "import jax"],
    "import ntkp2p": ["-c", "import ntkp2p"],
    "import jax, ntkp2p": ["-c", "import jax, ntkp2p"],
    "ntkp2p.metropolis": ["-c", "import ntkp2p; ntkp2p.metropolis"],
    "ntkp2p.Experiment": ["-c", "import ntkp2p; ntkp2p.Experiment"],
    "ntkp2p.predict": ["-c", "import ntkp2p; ntkp2p.predict"],
    "from ntkp2p import *": ["-c", "from ntkp2p import *"],
    "ntkp2p --version": ["-m", "ntkp2p", "--version"],
    "ntkp2p --help": ["-m", "ntkp2p", "--help"],
    "ntkp2p compare --help": ["-m", "ntkp2p", "compare", "--help"],
    "ntkp2p check --graph cycle:5": ["-m", "ntkp2p", "check", "--graph", "cycle:5"],
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    shortest = dict.fromkeys(CASES, float("inf"))
    for _ in range(RUNS):
        shortest = {case: min(shortest[case], seconds(arguments)) for case, arguments in CASES.items()}
    python, jax, *_ = shortest.values()
    print(f"{'':<30}{'seconds':>8}{'/ python':>10}{'/ jax':>8}")
    for case, taken in shortest.items():
        print(f"{case:<30}{taken:>8.2f}{taken / python:>10.1f}{taken / jax:>8.2f}")


main()
