"""One thread for many small decompositions: several wait for one another, and take three times as long."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import scipy.linalg  # noqa: F401  that its BLAS is there to be found
from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    """Those of this process; to look for them takes 20 ms."""
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy's and SciPy's linear algebra on one thread: in a `with` block, or over a function as `@one_thread()`."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield
