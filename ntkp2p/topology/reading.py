"""A mixing matrix, or a graph, from a file."""

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import networkx as nx
import numpy as np
import scipy.sparse
from jaxtyping import Float
from scipy.sparse import csr_array

from ntkp2p.base.checks import real_in, whole_in
from ntkp2p.base.errors import InputError
from ntkp2p.base.reading import must_unpack_to_little, parsing, read_array, text_of
from ntkp2p.topology.matrix import MOST_AGENTS, square, square_matrix
from ntkp2p.topology.weights import mixing_of

#: The longest line of an edge list: from, to, weight.
_COLUMNS = 3


def load_mixing(path: str | os.PathLike[str], /) -> Float[np.ndarray, "Q Q"]:
    """Read a mixing matrix from a file; `validate_mixing` says whether it suits an algorithm.

    Parameters
    ----------
    path
        ``.csv``: one line per row, numbers separated by commas, no header.
        ``.npy``: what ``np.save(path, W)`` wrote. Pickled (object) arrays are refused, because
        opening a pickle runs whatever code it carries.
        ``.npz``: what ``scipy.sparse.save_npz(path, W)`` wrote.
        ``.edges`` or ``.txt``: an edge list. Each line is ``from to weight``, separated by commas or blanks: `from`
        sends to `to`, W[to, from] = weight; agents are numbered from 0, and a line from an agent to itself is its
        self-weight. With two columns the links go both ways and have Metropolis weights.

    Returns
    -------
    ndarray, shape (Q, Q)
        Square and finite, in float64.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If the file does not hold one square matrix of finite real numbers, or an edge list repeats an edge or leaves
        out an agent; rows are counted from 1, as an editor counts them.

    Examples
    --------
    A directed edge 0 → 1 of weight 0.5 is W[1, 0]:

    >>> import tempfile, pathlib
    >>> import ntkp2p as p2p
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "W.edges"
    ...     _ = file.write_text("0 0 1\\n0 1 0.5\\n1 1 0.5\\n")
    ...     W = p2p.load_mixing(file)
    >>> W
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    found = read(path)
    return square_matrix(mixing_of(found)[0] if isinstance(found, nx.Graph) else found, name=str(path))


def read(path: str | os.PathLike[str], /) -> np.ndarray | csr_array | nx.Graph:
    """What a file holds, as `load_mixing` reads it, without making it dense: an edge list as a graph.

    The graph is directed with weights, or undirected without any.
    """
    path = Path(path)
    if path.suffix.lower() not in _READERS:
        raise InputError(
            f"{path}: a mixing matrix is read from .csv, .npy, .npz or .edges, not {path.suffix!r}: "
            "save it with np.save('W.npy', W) or np.savetxt('W.csv', W, delimiter=',')"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file to read a mixing matrix from")
    found = _READERS[path.suffix.lower()](path)
    return found if isinstance(found, nx.Graph) else square(found, name=str(path))


# --- tables ---


def _read_csv(path: Path) -> list[list[float]]:
    lines = _lines(path)
    with parsing(path, "a CSV file", "write numbers separated by commas"):
        table = [(row, cells) for row, cells in enumerate(csv.reader(lines), start=1) if cells]
    if not table:
        raise InputError(f"{path} is empty: write one line of comma-separated numbers per agent")
    first, header = table[0]
    if all(real_in(cell) is None for cell in header):
        raise InputError(
            f"{path}, row {first} holds no number but {','.join(header)[:40]!r}: "
            "delete the header row, and separate numbers by commas"
        )
    rows = [_read_row(path, row, cells, width=len(header)) for row, cells in table]
    if len(header) <= _COLUMNS < len(rows):
        raise InputError(
            f"{path} is {len(rows)} × {len(header)}, not square: one row and one column per agent, "
            f"or name an edge list {path.stem}.edges"
        )
    return rows


def _read_row(path: Path, row: int, cells: list[str], *, width: int) -> list[float]:
    for column, cell in enumerate(cells, start=1):
        if real_in(cell) is None:
            raise InputError(
                f"{path}, row {row}, column {column} is {cell!r}, not a number: write numbers only "
                "(from pandas: to_csv(path, header=False, index=False))"
            )
    if len(cells) != width:
        raise InputError(
            f"{path}, row {row} has {len(cells)} numbers where the first row has {width}: "
            "give every row one number per agent"
        )
    return [float(cell) for cell in cells]


def _lines(path: Path) -> list[str]:
    return text_of(path).splitlines()


def _read_npy(path: Path) -> np.ndarray:
    # Not np.load, which would also open a zip archive with the suffix .npy.
    remedy = "save it with np.save(path, W.astype(float))"
    with parsing(path, "a whole .npy file of numbers, without pickled arrays", remedy), path.open("rb") as file:
        return read_array(file, path.stat().st_size)


def _read_npz(path: Path) -> csr_array:
    kind, remedy = "a sparse matrix", "save it with scipy.sparse.save_npz(path, W)"
    with parsing(path, kind, remedy):
        must_unpack_to_little(path)
        with np.load(path, allow_pickle=False) as arrays:
            shape = tuple(int(size) for size in arrays["shape"])
    if max(shape, default=0) > MOST_AGENTS:
        raise InputError(f"{path} has the shape {shape}, for more than {MOST_AGENTS:,} agents: {remedy}")
    with parsing(path, kind, remedy):
        found = scipy.sparse.load_npz(path)
        if hasattr(found, "check_format"):
            found.check_format(full_check=True)  # SciPy's compiled code trusts the indices
        return csr_array(found)


# --- edge lists ---


def _read_edges(path: Path) -> nx.Graph:
    edges = list(_edges(path))
    if not edges:
        raise InputError(f"{path} is empty: write one line 'from to' or 'from to weight' per edge")
    named = {agent for _, cells in edges for agent in cells[:2]}
    if (last := max(named)) >= len(named):  # said before a node is made for every number up to the last one
        absent = next(agent for agent in range(last) if agent not in named)
        raise InputError(f"{path} has no edge of agent {absent}, though it has one of {last}: number them without gaps")
    weighted = len(edges[0][1]) == _COLUMNS
    graph = nx.DiGraph() if weighted else nx.Graph()
    graph.add_nodes_from(range(len(named)))
    rows: dict[tuple[int, int], int] = {}
    for row, (sender, receiver, *weight) in edges:
        ends = (sender, receiver) if weighted else (min(sender, receiver), max(sender, receiver))
        if ends in rows:
            raise InputError(f"{path}, row {row} repeats the edge {sender}–{receiver} of row {rows[ends]}: delete one")
        if sender == receiver and not weighted:
            raise InputError(
                f"{path}, row {row} is a self-loop, {sender}–{receiver}: delete it, or give all edges weights"
            )
        rows[ends] = row
        graph.add_edge(sender, receiver, **({"weight": weight[0]} if weighted else {}))
    return graph


def _edges(path: Path) -> Iterator[tuple[int, list]]:
    """The rows' numbers, and what is in them: two agents, and a weight if the first row has one."""
    width = 0
    for row, line in enumerate(_lines(path), start=1):
        cells = line.partition("#")[0].replace(",", " ").split()
        if not cells:
            continue
        width = width or len(cells)
        if len(cells) != width or not 2 <= width <= _COLUMNS:
            wanted = f"{width} like the first one" if 2 <= width <= _COLUMNS else "'from to' or 'from to weight'"
            raise InputError(f"{path}, row {row} has {len(cells)} columns: write {wanted}")
        agents, weights = list(map(whole_in, cells[:2])), list(map(real_in, cells[2:]))
        if any(number is None for number in (*agents, *weights)) or min(agents) < 0:  # pyright: ignore[reportArgumentType]
            raise InputError(
                f"{path}, row {row} is {line.strip()[:40]!r}: an edge is two agents, numbered from 0, and a weight; "
                "delete a header row"
            )
        yield row, [*agents, *weights]


_READERS: Mapping[str, Callable] = {
    ".csv": _read_csv,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".edges": _read_edges,
    ".txt": _read_edges,
}
