"""Shapes and types in signatures are checked throughout the tests; the process keeps JAX's default flags."""

import importlib
import sys
import types
import warnings

import jaxtyping
import matplotlib
import pytest

matplotlib.use("agg")
# The experiment's fields say what they should be; it is its own messages that are tested there.
ROOMS = (
    "algorithms",
    "data",
    "dynamics",
    "models",
    "topology",
    "compare",
    "measures",
    "prediction",
    "training",
    "trajectory",
)
jaxtyping.install_import_hook([f"ntkp2p.{room}" for room in ROOMS], "beartype.beartype")


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
    """The library, imported with the names that it asks of older JAX, which are taken back afterwards."""
    import jax
    import jax.interpreters.ad as ad
    from jax.extend import core

    util = types.ModuleType("jax.util")
    util.safe_map = lambda f, *xs: list(map(f, *xs))
    util.safe_zip = lambda *xs: list(zip(*xs, strict=True))
    experimental = types.ModuleType("neural_tangents.experimental")
    names = ("Jaxpr", "JaxprEqn", "Literal", "Var", "Primitive")
    lent = [(jax.core, name, getattr(core, name)) for name in names]
    lent += [(jax, "util", util), (ad, "zeros_like_p", core.Primitive("zeros_like"))]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setitem(sys.modules, "jax.util", util)
        patch.setitem(sys.modules, "neural_tangents.experimental", experimental)
        for module, name, value in lent:
            patch.setattr(module, name, value, raising=False)
        return importlib.import_module("neural_tangents")
