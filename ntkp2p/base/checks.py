"""Argument checks: lookup by name with a suggestion, and numbers within bounds."""

import difflib
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from ntkp2p.base.errors import InputError

Value = TypeVar("Value")


def lookup(table: Mapping[str, Value], name: object, kind: str) -> Value:
    """The entry of `table` called `name`.

    Parameters
    ----------
    table
        What there is, by name.
    name
        What was asked for.
    kind
        What the table lists, in the singular: ``"data set"``.

    Raises
    ------
    ValueError
        For a name that is not in the table; the message gives the closest one and the known ones.

    Examples
    --------
    >>> from ntkp2p.base.checks import lookup
    >>> lookup({"cycle": 1, "star": 2}, "cycel", "graph")
    Traceback (most recent call last):
    ...
    ntkp2p.InputError: unknown graph 'cycel' (did you mean 'cycle'?); known: cycle, star
    """
    if isinstance(name, str) and name in table:
        return table[name]
    # A CSV file may have hundreds of columns; the message stays one line.
    known = ", ".join(islice(table, 20)) + (", …" if len(table) > 20 else "")
    raise InputError(f"unknown {kind} {name!r}{suggestion(name, table)}; known: {known}")


def suggestion(name: object, known: Iterable[str], /) -> str:
    """The known name closest to `name`, as a question to append to a message; empty if none is close."""
    lower = {key.lower(): key for key in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""


def is_number(value: Any, /) -> bool:
    """Whether it is a finite real number, and not a truth value."""
    import jax  # which topology does without

    number = isinstance(value, int | float | np.number | jax.Array) and not isinstance(value, bool)
    return bool(number and np.ndim(value) == 0 and np.isrealobj(value) and np.isfinite(value))


def must_be_share(name: str, value: Any, remedy: str, /, *, one: bool = False) -> None:
    """Refuse what is not above 0 and below 1 (or at most 1, if `one`); what JAX traces was checked as a number."""
    from jax.core import Tracer

    if isinstance(value, Tracer) or (is_number(value) and (0 < value < 1 or (one and value == 1))):
        return
    raise InputError(f"{name} must be above 0 and {'at most' if one else 'below'} 1, found {value!r}: {remedy}")


def whole_rounds(name: str, value: Any, /, *, least: int = 0) -> int:
    """A whole number of rounds."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be a whole number of rounds ≥ {least}, found {value!r}: for instance {name}=10")
    return int(value)


# A float is refused in our words, so the annotations let one in.
Count = int | np.integer | float


# What enters


def whole(value: object, name: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)
