"""What may be a mixing matrix at all: a square array of finite real numbers."""

import networkx as nx
import numpy as np
from jaxtyping import Float


def square_matrix(W: object, /, *, name: str = "mixing") -> Float[np.ndarray, "Q Q"]:
    """Take anything array-like as a square, finite float64 matrix, or say why it is none.

    Raises
    ------
    TypeError
        If W is a graph, or does not consist of real numbers.
    ValueError
        If W is ragged, empty, not square, or has an entry that is not finite.
    """
    if isinstance(W, nx.Graph):
        raise TypeError(f"{name} is a graph, not a matrix: give its links weights, metropolis(graph)")
    try:
        matrix = np.asarray(W)
    except ValueError:
        raise ValueError(f"{name} has rows of unequal length: give every row one number per agent") from None
    if matrix.dtype.kind not in "buif":
        raise TypeError(
            f"{name} is to be a square array of real numbers, got {type(W).__name__} "
            f"with entries of type {matrix.dtype}"
        )
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        shape = " × ".join(map(str, matrix.shape)) or "a single number"
        raise ValueError(f"{name} is {shape}, not square: one row and one column per agent")
    matrix = matrix.astype(np.float64, copy=False)
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        row, column = bad[0]
        raise ValueError(f"{name}[{row}, {column}] is {matrix[row, column]}: every weight is to be finite")
    return matrix
