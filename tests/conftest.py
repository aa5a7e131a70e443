"""Shapes and types in signatures are checked throughout the tests; the process keeps JAX's default flags of numbers.

Plain `pytest` runs the fast tests. `pytest --all` also runs those marked `slow`, and those marked `needs(...)` with the
packages that only an extra installs; these fail where a package is missing.
"""

import dataclasses
import os
from collections import Counter

import hypothesis
import jax
import jaxtyping
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import threadpoolctl

matplotlib.use("agg")
os.environ["NTKP2P_COMPILED"] = "off"  # the user's own folder is left alone
# Several workers share the processors: threads of small decompositions would only wait for one another.
threadpoolctl.threadpool_limits(1, user_api="blas")
# The experiment's fields say what they should be; it is its own messages that are tested there.
PACKAGES = (
    "algorithms",
    "analysis.stability",
    "analysis.stability_map",
    "analysis.stability_report",
    "analysis.timeliness",
    "asynchrony.clocks",
    "asynchrony.events",
    "asynchrony.gossip",
    "asynchrony.staleness",
    "base.checks",
    "data",
    "dynamics",
    "kernels",
    "models.cifar",
    "models.networks",
    "models.threefry",
    "runs.comparison",
    "runs.infinite_width",
    "runs.measures",
    "runs.prediction",
    "runs.training",
    "runs.trajectory",
    "topology",
)
jaxtyping.install_import_hook([f"ntkp2p.{package}" for package in PACKAGES], "beartype.beartype")

#: What plain pytest leaves out: the number of slow tests, and of tests that need each set of packages.
LEFT_OUT = pytest.StashKey[Counter]()


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also run tests that are slow or need a package from an extra")
    parser.addoption(
        "--perturb",
        type=int,
        metavar="SEED",
        help="change the data and matrices of all experiments by 1e-15 of each entry",
    )


#: The files that take longest. They come first, so that no worker is left with one in the end.
LONGEST = (
    "test_asynchronous.py",
    "test_transition.py",
    "test_push_sum.py",
    "test_design.py",
    "test_varying.py",
    "test_exact.py",
    "test_explore.py",
    "test_stability.py",
    "test_cli.py",
    "test_ntk.py",
    "test_integrate.py",
    "test_check.py",
    "test_sweep.py",
)


#: Hypothesis's number of examples for each test, unless the test says otherwise. There is no deadline: a first example
#: may compile a program.
EXAMPLES = {"few": 30, "many": 200}
for name, number in EXAMPLES.items():
    hypothesis.settings.register_profile(name, deadline=None, max_examples=number)

#: Most of the time goes into compiling programs that run once; with these options it is little more than half as much.
QUICK = {"xla_cpu_use_fusion_emitters": False}


def pytest_configure(config):
    """Workers take `QUICK` from the environment. XLA ends a process whose options it does not know: ask it first."""
    hypothesis.settings.load_profile("many" if config.getoption("--all") else "few")
    if config.getoption("--perturb") is not None:
        perturb(config.getoption("--perturb"))
    if config.getoption("--all") or hasattr(config, "workerinput"):
        return
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=QUICK)
    except RuntimeError:
        return
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


def perturb(seed):
    """Change what experiments are given by the rounding of another machine: no verdict and no test may depend on it."""
    from ntkp2p.runs import experiment
    from ntkp2p.topology import Schedule

    def rounded(values):
        signs = np.random.default_rng([seed, values.size]).choice([-1, 1], size=values.shape)
        return values * (1 + 1e-15 * signs)

    check, square_matrix = experiment.Experiment.__post_init__, experiment.square_matrix

    def perturbed(self):
        if isinstance(self.data, experiment.AgentData) and not hasattr(self.data, "perturbed"):
            dataset = self.data.dataset
            inputs, test_inputs = rounded(dataset.inputs), rounded(dataset.test_inputs)
            own = dataclasses.replace(dataset, inputs=inputs, test_inputs=test_inputs)
            object.__setattr__(self, "data", dataclasses.replace(self.data, dataset=own))
            object.__setattr__(self.data, "perturbed", True)
        if isinstance(self.mixing, Schedule):
            object.__setattr__(self, "mixing", dataclasses.replace(self.mixing, matrices=rounded(self.mixing.matrices)))
        check(self)

    experiment.Experiment.__post_init__ = perturbed
    experiment.square_matrix = lambda mixing: rounded(square_matrix(mixing))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    if config.getoption("--all"):
        return
    left_out, kept, others = Counter(), [], []
    for item in items:
        packages = ", ".join(dict.fromkeys(name for mark in item.iter_markers("needs") for name in mark.args))
        slow = item.get_closest_marker("slow") is not None
        if packages or slow:
            left_out[packages] += 1
        (others if packages or slow else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=others)
    config.stash[LEFT_OUT] = left_out
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Every worker of pytest-xdist collects all the tests: what one of them left out is what all of them did."""
    output = getattr(node, "workeroutput", {})
    if "left_out" in output:
        node.config.stash[LEFT_OUT] = Counter(output["left_out"])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter, config):
    """What was left out is the last that is said."""
    yield
    left_out = config.stash.get(LEFT_OUT, Counter())
    if not left_out:
        return
    slow, packages = left_out.pop("", 0), dict.fromkeys(name for names in left_out for name in names.split(", "))
    parts = [f"{slow} slow test{'s' * (slow != 1)}"] if slow else []
    if left_out:
        number = left_out.total()
        parts.append(f"{number} that need{'s' * (number == 1)} {', '.join(sorted(packages))}")
    were = "was" if left_out.total() + slow == 1 else "were"
    terminalreporter.write_line(f"{' and '.join(parts)} {were} not run: pip install '.[dev]' && pytest --all")


@pytest.fixture(autouse=True)
def closed_figures():
    """Figures are closed after every test: which tests share a process, and so how many would be open, is not fixed."""
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """A folder for the programs that processes started by the tests compile, one process after another.

    Each worker has a folder of its own, since JAX does not write an entry in one piece.
    """
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session", autouse=True)
def quick_compilation():
    """Most of the time would go into optimising programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def optimised(quick_compilation):
    """For modules whose programs run for long."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def digits():
    """`digits(agents, ...)`: agents' data of 8 × 8 images, quick to train on."""
    from ntkp2p import data

    def load(agents=4, samples=40, classes=(0, 1), by="label", test_samples=20, **options):
        source = data.load("digits", classes=classes, samples=samples, test_samples=test_samples)
        return source.split(agents=agents, by=by, **options)

    return load


@pytest.fixture(scope="session")
def neural_tangents():
    """The library, as the package imports it."""
    from ntkp2p.kernels.infinite import neural_tangents

    return neural_tangents()
