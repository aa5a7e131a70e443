"""Conversion and validation of matrices."""

from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse
from jaxtyping import Float
from scipy.sparse import csr_array

from ntkp2p.base.checks import LARGEST_VALUE
from ntkp2p.base.errors import InputError, InputTypeError

#: More agents than any computation here can handle.
MOST_AGENTS = 10**6


def square_matrix(W: object, /, *, name: str = "mixing") -> Float[np.ndarray, "Q Q"]:
    """Take anything array-like, or a sparse array, as a dense one: square, finite, float64; or say why it is none.

    Raises
    ------
    TypeError
        If W is a graph, or does not consist of real numbers.
    ValueError
        If W is ragged, empty, not square, or has an entry that is not finite.
    """
    matrix = square(W, name=name)
    return matrix.toarray() if isinstance(matrix, csr_array) else matrix


def square(W: object, /, *, name: str = "mixing") -> np.ndarray | csr_array:
    """As `square_matrix`, but what is sparse stays sparse."""
    if isinstance(W, np.ma.MaskedArray):
        raise InputTypeError(f"{name} is a masked array: fill its masked entries, W.filled(0)")
    if isinstance(W, nx.Graph):
        raise InputTypeError(f"{name} is a graph, not a matrix: give its links weights, {usual_weights(W)}(graph)")
    if scipy.sparse.issparse(W):
        matrix = csr_array(W)
        matrix.sum_duplicates()
    else:
        try:
            matrix = np.asarray(W)
        except ValueError:
            raise InputError(f"{name} has rows of unequal length: give every row one number per agent") from None
    if matrix.dtype.kind not in "buif":
        raise InputTypeError(
            f"{name} is to be a square array of real numbers, got {type(W).__name__} "
            f"with entries of type {matrix.dtype}"
        )
    sizes: tuple[int, ...] = matrix.shape  # pyright: ignore[reportAssignmentType] (the stubs of sparse arrays)
    if len(sizes) != 2 or sizes[0] != sizes[1] or 0 in sizes:
        shape = " × ".join(map(str, sizes)) or "a single number"
        raise InputError(f"{name} is {shape}, not square: one row and one column per agent")
    matrix: Any = matrix.astype(np.float64, copy=False)
    _must_be_finite(matrix, name)
    return matrix


def symmetric(matrices: Float[np.ndarray, "*K Q Q"], /) -> bool:
    """Whether every matrix equals its transpose to rounding: within 10⁻¹⁴ of the largest entry.

    Methods for symmetric matrices then err by as little. `spectrum.is_symmetric` is the verdict on a matrix that a user
    wrote down, and takes 10⁻⁸ for rounding.
    """
    return bool(abs(matrices - matrices.swapaxes(-1, -2)).max() <= 1e-14 * abs(matrices).max())


def usual_weights(graph: nx.Graph) -> str:
    """The default weights of a graph: push-sum's if its links are directed."""
    return "push_weights" if graph.is_directed() else "metropolis"


def _must_be_finite(matrix: np.ndarray | csr_array, name: str) -> None:
    values = matrix.data if isinstance(matrix, csr_array) else matrix
    if np.isfinite(values).all() and not np.any(abs(values) > LARGEST_VALUE):
        return
    if np.isfinite(values).all():
        raise InputError(f"{name} has an entry of {abs(values).max():.1e}, beyond {LARGEST_VALUE:g}: scale the weights")
    found = matrix.tocoo() if isinstance(matrix, csr_array) else None
    places = np.argwhere(~np.isfinite(values))
    row, column = places[0] if found is None else (c[places[0, 0]] for c in found.coords)
    raise InputError(f"{name}[{row}, {column}] is {matrix[row, column]}: every weight is to be finite")
