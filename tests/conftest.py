"""Shapes and types in signatures are checked throughout the tests; the process keeps JAX's default flags of numbers."""

import jax
import jaxtyping
import matplotlib
import pytest
import threadpoolctl

matplotlib.use("agg")
# Several workers share the processors: threads of small decompositions would only wait for one another.
threadpoolctl.threadpool_limits(1, user_api="blas")
# The experiment's fields say what they should be; it is its own messages that are tested there.
ROOMS = (
    "algorithms",
    "asynchrony.clocks",
    "asynchrony.events",
    "asynchrony.gossip",
    "asynchrony.staleness",
    "data",
    "dynamics",
    "initialisations",
    "models",
    "topology",
    "compare",
    "measures",
    "prediction",
    "stability",
    "timeliness",
    "training",
    "trajectory",
)
jaxtyping.install_import_hook([f"ntkp2p.{room}" for room in ROOMS], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Most of the time would go into compiling the same programs again, for every experiment that describes them anew.

    Each worker has a folder of its own, since JAX does not write an entry in one piece.
    """
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return folder


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules where most of the time would go into making programs fast that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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
    from ntkp2p.models.infinite import neural_tangents

    return neural_tangents()
