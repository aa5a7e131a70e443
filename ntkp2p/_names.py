"""Find something by the name a user typed, or say which names there are."""

import difflib
from collections.abc import Mapping
from itertools import islice
from typing import TypeVar

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
    >>> from ntkp2p._names import lookup
    >>> lookup({"cycle": 1, "star": 2}, "cycel", "graph")
    Traceback (most recent call last):
    ...
    ValueError: unknown graph 'cycel' (did you mean 'cycle'?); known: cycle, star
    """
    if isinstance(name, str) and name in table:
        return table[name]
    lower = {key.lower(): key for key in table}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    hint = f" (did you mean {lower[close[0]]!r}?)" if close else ""
    # A CSV file may have hundreds of columns; the message stays one line.
    known = ", ".join(islice(table, 20)) + (", …" if len(table) > 20 else "")
    raise ValueError(f"unknown {kind} {name!r}{hint}; known: {known}")
