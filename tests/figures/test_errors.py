"""The table of errors that `ntkp2p figures` prints and writes."""

import pandas as pd
import pytest

from ntkp2p.figures import errors

LONG = "a run with a name of many words, all of which have to be read, since none of them can be left out"


@pytest.fixture
def table():
    rows = [
        {"run": "affine", "linearisation": 6.8e-12, "solver": 2.7e-10, "train [s]": 0.46},
        {"run": LONG, "linearisation": 0.0084, "solver": 3.4e-12, "train [s]": 12.0},
        {"run": "fitted slope: -0.7"},
    ]
    return pd.DataFrame(rows).set_index("run")


def test_text_fits_a_terminal_and_loses_nothing(table):
    text = errors.as_text(table)
    lines = text.splitlines()
    assert max(map(len, lines)) <= errors.WIDTH
    assert lines[1].split() == ["affine", "7e-12", "3e-10", "0.5"]
    assert lines[3].split()[-4:] == ["0.84", "%", "3e-12", "12.0"]
    assert " ".join(text.split()).find(" ".join(LONG.split()[:8])) > 0
    assert {word for word in LONG.split()} <= set(text.split())
    assert lines[-2] == "fitted slope: -0.7"


def test_markdown_has_the_errors_without_the_times(table, tmp_path):
    found = errors.write(table, tmp_path).read_text(encoding="utf-8").splitlines()
    assert found[2] == "| run | linearisation | solver |"
    assert found[4:6] == ["| affine | 7e-12 | 3e-10 |", f"| {LONG} | 0.84 % | 3e-12 |"]
    assert found[-1] == "- fitted slope: -0.7"


@pytest.mark.parametrize(("value", "said"), [(0.5, "50 %"), (0.0123, "1.23 %"), (9e-5, "9e-05")])
def test_errors_in_words(value, said):
    table = pd.DataFrame({"run": ["a"], "linearisation": [value], "solver": [1.0]}).set_index("run")
    assert errors.as_markdown(table).splitlines()[4] == f"| a | {said} | 1e+00 |"
