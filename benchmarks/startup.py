"""How long one waits before anything begins, in seconds of processor time beside `import jax` of the same run.

python benchmarks/startup.py > benchmarks/startup.txt

The problem is tiny: four agents with ten samples of sixteen numbers each, one hidden layer of 32. No compiled program
is kept between processes, except in the rows "kept": there a first run, which is not counted, has filled the folder.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

#: Runs of each, in turn, so that what else the machine does meets all of them; the shortest counts.
RUNS = 5

TINY = """
import numpy as np, ntkp2p as p2p
rng = np.random.default_rng(0)
numbers = p2p.data.Dataset(name="numbers", inputs=rng.normal(size=(40, 16)), targets=rng.normal(size=(40, 1)))
experiment = p2p.Experiment(
    model=p2p.models.mlp(width=32, depth=1), data=numbers.split(4), mixing=p2p.metropolis(p2p.graphs.cycle(4)),
    algorithm=p2p.DGD(step_size=0.1), rounds=30, record=5)
"""
TWICE = """
import time
p2p.{0}(experiment)
begin = time.process_time()
p2p.{0}(experiment)
print(time.process_time() - begin)
"""
TOML = """rounds = 150
[model]
name = "mlp"
width = 1024
depth = 2
[data]
name = "mnist"
classes = [0, 1]
samples = 200
test_samples = 100
[split]
agents = 10
by = "label"
[mixing]
graph = "cycle"
weights = "metropolis"
[algorithm]
name = "DGD"
step_size = 0.1
"""
PREDICT = ["-m", "ntkp2p", "predict", "experiment.toml", "--quiet"]

CASES = {
    "python -c pass": ["-c", "pass"],
    "import jax": ["-c", "import jax"],
    "import ntkp2p": ["-c", "import ntkp2p"],
    "ntkp2p.metropolis": ["-c", "import ntkp2p; ntkp2p.metropolis"],
    "ntkp2p.predict": ["-c", "import ntkp2p; ntkp2p.predict"],
    "a tiny experiment": ["-c", TINY],
    "and its first predict": ["-c", TINY + "p2p.predict(experiment)"],
    "and its first train": ["-c", TINY + "p2p.train(experiment)"],
    "and its first predict, kept": ["-c", "import ntkp2p; ntkp2p.keep_compiled()" + TINY + "p2p.predict(experiment)"],
    "ntkp2p --help": ["-m", "ntkp2p", "--help"],
    "ntkp2p check --graph cycle:5": ["-m", "ntkp2p", "check", "--graph", "cycle:5"],
    "ntkp2p predict (README)": PREDICT,
    "ntkp2p predict (README), kept": PREDICT,
}


def seconds(arguments: list[str], folder: str, kept: str) -> float:
    """Of processor time that a new process takes."""
    environment = os.environ | {"NTKP2P_COMPILED": kept}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def second(function: str) -> float:
    """Of processor time that the second call takes in one process."""
    command = [sys.executable, "-c", TINY + TWICE.format(function)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "experiment.toml").write_text(TOML)
        shortest = dict.fromkeys(CASES, float("inf"))
        for run in range(RUNS + 1):
            for case, arguments in CASES.items():
                taken = seconds(arguments, folder, os.path.join(folder, "kept") if "kept" in case else "off")
                shortest[case] = min(shortest[case], taken if run else float("inf"))
    jax = shortest["import jax"]
    print(f"{'':<32}{'seconds':>8}{'beyond jax':>12}{'/ jax':>8}")
    for case, taken in shortest.items():
        print(f"{case:<32}{taken:>8.2f}{taken - jax:>12.2f}{taken / jax:>8.2f}")
    for function in ("predict", "train"):
        print(f"{f'a second {function}':<32}{min(second(function) for _ in range(RUNS)):>8.2f}")


main()
