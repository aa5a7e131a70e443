"""One notion of a whole number and one of a real one, wherever numbers enter."""

import jax.numpy as jnp
import numpy as np
import pytest

import ntkp2p as p2p
from ntkp2p.base.checks import is_number, is_real, is_whole, real, real_in, whole, whole_in
from ntkp2p.base.errors import InputError

WHOLE = [3, np.int64(3), np.uint8(3), np.array(3), jnp.asarray(3), 10**9]
REAL = [2.5, np.float64(2.5), np.float32(2.5), np.array(2.5), jnp.asarray(2.5)]
NONE = [True, np.True_, "3", None, 3j, np.complex128(3), [3], np.array([3]), np.nan, np.array("3"), np.array(True)]


def test_numbers_of_all_libraries_are_numbers():
    assert all(is_whole(value) and is_number(value) for value in WHOLE)
    assert all(is_number(value) and not is_whole(value) for value in REAL)
    assert not any(is_whole(value) or is_number(value) for value in NONE)
    assert is_real(np.inf)
    assert not is_number(np.inf)


def test_what_enters_is_a_number_of_python():
    for value in WHOLE:
        assert whole(value, "n", least=1) == int(value)
        assert type(whole(value, "n", least=1)) is int
    for value in REAL:
        assert real(value, "x", least=2) == 2.5
        assert type(real(value, "x", above=2)) is float


@pytest.mark.parametrize("bad", NONE)
def test_what_is_none_is_refused_by_name(bad):
    with pytest.raises(InputError, match="n must be a whole number of at least 1, found"):
        whole(bad, "n", least=1)
    with pytest.raises(InputError, match="x must be a finite number above 0, found"):
        real(bad, "x", above=0)


@pytest.mark.parametrize(
    ("text", "integer", "number"),
    [("12", 12, 12.0), (" -3 ", -3, -3.0), ("+.5e-1", None, 0.05), ("2.", None, 2.0), ("-inf", None, -np.inf)]
    + [(text, None, None) for text in ("0_5", "\u0661", "1,5", "0x10", "1e", "", "e3", "1 2", "\xb2", "five", "--1")],
)
def test_a_text_is_a_number_where_it_is_written_as_one(text, integer, number):
    assert whole_in(text) == integer
    assert real_in(text) == number


#: Everything that takes a whole number n, as a call.
COUNTS = {
    **{name: lambda n, name=name: p2p.graphs.GRAPHS[name](n) for name in ("cycle", "star", "complete", "path")},
    **{name: lambda n, name=name: p2p.graphs.GRAPHS[name](n) for name in ("exponential", "directed_exponential")},
    "hypercube": p2p.graphs.hypercube,
    "torus": lambda n: p2p.graphs.torus(n, n),
    "erdos_renyi": lambda n: p2p.graphs.erdos_renyi(n, 0.9),
    "width": lambda n: p2p.models.mlp(width=n),
    "samples": lambda n: p2p.data.load("regression", samples=n, features=n, test_samples=n, seed=n),
    "steps": lambda n: p2p.LocalSGD(0.1, steps=n, delay=n),
    "delay": lambda n: p2p.Delayed(p2p.DGD(0.1), gradients=n),
    "gossip rounds": lambda n: p2p.SkewCompensatedSparsePush(0.1, p2p.TopK(0.1), gradient_rounds=n, gossip_rounds=n),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_taken_from_numpy_and_no_truth_value_is_one(name):
    plain = repr(COUNTS[name](4))
    assert repr(COUNTS[name](np.int64(4))) == repr(COUNTS[name](np.array(4))) == plain
    for bad in (True, "4", 4.0, np.array([4])):
        with pytest.raises(InputError, match="whole number"):
            COUNTS[name](bad)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("huge", [10**25, np.int64(2**62)])
def test_counts_that_no_machine_can_hold_are_refused_at_once(name, huge):
    with pytest.raises(InputError, match=r"whole number|takes at most [0-9,]+ agents"):
        COUNTS[name](huge)


def test_values_whose_squares_overflow_are_refused():
    inputs, targets = np.zeros((4, 1)), np.ones((4, 1))
    for wrong in ({"inputs": 1e200 + inputs}, {"targets": -1e200 * targets}):
        with pytest.raises(InputError, match=r"beyond ±1e\+75, whose losses overflow: scale them"):
            p2p.data.Dataset(**{"name": "d", "inputs": inputs, "targets": targets} | wrong)
    with pytest.raises(InputError, match=r"has an entry of 1.0e\+200, beyond 1e\+75: scale the weights"):
        p2p.check_mixing(1e200 * np.eye(2))
    with pytest.raises(InputError, match=r"weight_std must be a finite number within ±1e\+100, found 1e\+308"):
        p2p.models.affine(weight_std=1e308)
    with pytest.raises(InputError, match=r"the network has 1e\+12 parameters"):
        p2p.models.mlp(width=10**6, depth=2).init(None, np.zeros((1, 2)), 1)


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(np.full((3, 3), 1 / 3), mask=np.eye(3))
    with pytest.raises(InputError, match="mixing is a masked array: fill its masked entries"):
        p2p.check_mixing(masked)
    with pytest.raises(InputError, match="inputs are a masked array"):
        p2p.data.Dataset(name="d", inputs=masked, targets=np.ones((3, 1)))
