"""Every reader reads damaged files as people get them: it returns something checked, or refuses in one line."""

import gzip
import io

import hypothesis
import numpy as np
import pytest
import scipy.sparse
import xarray as xr
from hypothesis import strategies as st

import ntkp2p as p2p
from ntkp2p.base.reading import MalformedError, parsing, read_array
from ntkp2p.data.readers import csv_columns, idx_pair, npz_arrays
from ntkp2p.runs.toml import tables_of
from ntkp2p.runs.trajectory import load_netcdf, save_netcdf
from ntkp2p.topology.reading import read

#: 90 examples for each reader in plain pytest, 600 with --all.
EXAMPLES = 3 * hypothesis.settings.default.max_examples
W = np.array([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.5, 0.5]])


def saved(save, *values, **arrays):
    file = io.BytesIO()
    save(file, *values, **arrays)
    return file.getvalue()


def idx(values):
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


IMAGES, LABELS = idx(np.arange(24).reshape(4, 2, 3)), idx(np.array([0, 1, 0, 1]))


def netcdf(tmp_path):
    return save_netcdf(xr.Dataset({"loss": ("round", np.ones(3))}), tmp_path / "whole.nc").read_bytes()


def read_idx(path):
    (path.parent / "train-labels-idx1-ubyte").write_bytes(LABELS)
    return idx_pair(path.parent, "train")


#: By name: the file's name, a whole file, and the reader.
READERS = {
    "matrix.csv": (b"0.5,0.5,0\n0.25,0.5,0.25\n0,0.5,0.5\n", read),
    "matrix.npy": (saved(np.save, W), read),
    "matrix.npz": (saved(scipy.sparse.save_npz, scipy.sparse.csr_array(W)), read),
    "coo.npz": (saved(scipy.sparse.save_npz, scipy.sparse.coo_array(W)), read),
    "links.edges": (b"0 1 0.5\n1 0 0.5\n0 0 0.5\n1 1 0.5\n", read),
    "data.csv": (b"x,y,label\n0.5,1,0\n1.5,2,1\n2.5,3,0\n", csv_columns),
    "data.npz": (saved(np.savez, inputs=W, labels=np.arange(3)), npz_arrays),
    "train-images-idx3-ubyte": (IMAGES, read_idx),
    "train-images-idx3-ubyte.gz": (gzip.compress(IMAGES), read_idx),
    "trace.csv": (b"agent,time\n0,0.5\n1,0.7\n0,1.5\n", lambda path: p2p.clocks.load_trace(path, 2)),
    "run.toml": (b'rounds = 3\n[model]\nname = "mlp"\nwidth = 16\n', tables_of),
    "run.nc": (netcdf, load_netcdf),
}


@st.composite
def damaged(draw, whole):
    """Cut off, with a part doubled, moved or overwritten, or no such file at all."""
    kind = draw(st.sampled_from(["cut", "double", "overwrite", "random", "whole"]))
    if kind == "random":
        return draw(st.binary(max_size=300))
    begin, end = sorted(draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    place = draw(st.integers(0, len(whole)))
    part = draw(st.binary(max_size=8))
    return {
        "cut": whole[:begin],
        "double": whole[:place] + whole[begin:end] + whole[place:],
        "overwrite": whole[:place] + part + whole[place + len(part) :],
        "whole": whole,
    }[kind]


def outcome(reader, path):
    try:
        reader(path)
    except p2p.InputError as error:
        return str(error)
    return "read"


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_in_one_line_or_read(name, tmp_path):
    whole, reader = READERS[name]
    whole = whole(tmp_path) if callable(whole) else whole
    path = tmp_path / name
    path.write_bytes(whole)
    reader(path)

    @hypothesis.settings(max_examples=EXAMPLES, deadline=None)
    @hypothesis.given(damaged(whole))
    def check(content):
        path.write_bytes(content)
        said = outcome(reader, path)
        assert len(said.splitlines()) == 1
        assert said == "read" or name in said or "train" in said

    check()


def test_a_header_that_announces_more_than_the_file_has_takes_no_memory():
    content = bytearray(saved(np.save, np.ones(3)))
    content[content.index(b"(3,), }") : content.index(b"(3,), }") + 18] = b"(10000000000000,)}"
    with pytest.raises(MalformedError, match="announces 80000000000000 bytes and 24 follow"):
        read_array(io.BytesIO(content), len(content))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (UnicodeDecodeError("utf-8", b"ab\xe9", 2, 3, "invalid"), "W.csv is not UTF-8 text, see its byte 2"),
        (RecursionError("too deep"), "W.csv is nested too deeply for a table: mend it"),
        (KeyError("no\nsuch key"), r"W.csv is not a table \(.*\): mend it"),
        (OSError("no file"), r"W.csv is not a table \(no file\): mend it"),
        (ValueError("x" * 500), r"W.csv is not a table \(x{119}…\): mend it"),
    ],
)
def test_any_failure_of_a_parser_is_one_line(raised, message):
    with pytest.raises(p2p.InputError, match=message) as refused, parsing("W.csv", "a table", "mend it"):
        raise raised
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_opened_and_our_own_words_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), parsing("W.csv", "a table", "mend it"):
        (tmp_path / "missing").read_text()
    with pytest.raises(p2p.InputError, match=r"^ours$"), parsing("W.csv", "a table", "mend it"):
        raise p2p.InputError("ours")


@pytest.mark.parametrize("wrong", [[[0, 1], [5, 0]], [[0, 1], [-1, 0]]])
@pytest.mark.parametrize("kind", ["coo", "csr", "csc"])
def test_sparse_indices_outside_the_matrix_are_refused(kind, wrong, tmp_path):
    """SciPy's compiled code trusts the indices: they decide between a verdict, another matrix's verdict and a crash."""
    arrays = {"format": kind, "shape": [2, 2], "data": [0.5, 0.5]}
    if kind == "coo":
        arrays |= {"row": wrong[0], "col": wrong[1]}
    else:
        arrays |= {"indices": wrong[1], "indptr": [0, 1, 2]}
    np.savez(tmp_path / "W.npz", **{name: np.array(value) for name, value in arrays.items()})
    with pytest.raises(p2p.InputError, match="is not a sparse matrix"):
        p2p.load_mixing(tmp_path / "W.npz")


def test_sizes_are_bounded_before_memory_is_reserved(tmp_path):
    arrays = {"format": "coo", "shape": [3 * 10**8] * 2, "data": [1.0], "row": [0], "col": [0]}
    np.savez(tmp_path / "W.npz", **{name: np.array(value) for name, value in arrays.items()})
    with pytest.raises(p2p.InputError, match="more than 1,000,000 agents"):
        p2p.load_mixing(tmp_path / "W.npz")
    bomb = gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12 + bytes(10**6))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    with pytest.raises(p2p.InputError, match="1000000 values where its header says"):
        read_idx(tmp_path / "train-images-idx3-ubyte.gz")
