"""Argument checks: lookup by name with a suggestion, and numbers within bounds."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Real
from typing import Annotated, Any, TypeGuard, TypeVar

from ntkp2p.base.errors import InputError

Value = TypeVar("Value")

#: Other common names of things, for suggestions.
SYNONYMS = {
    "ring": "cycle",
    "loop": "cycle",
    "clique": "complete",
    "full": "complete",
    "fully_connected": "complete",
    "line": "path",
    "chain": "path",
    "lattice": "grid",
    "mesh": "grid",
    "er": "erdos_renyi",
    "gnp": "erdos_renyi",
    "rgg": "random_geometric",
    "dsgd": "DGD",
    "d-psgd": "DGD",
    "dpsgd": "DGD",
    "sgp": "PushSum",
    "push_sum": "PushSum",
    "fedavg": "LocalSGD",
    "metropolis_hastings": "metropolis",
    "topk": "top_k",
    "randk": "random_k",
    "fc": "mlp",
    "linear": "affine",
    "logistic": "cross_entropy",
    "mse": "squared",
}


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
    synonym = SYNONYMS.get(str(name).lower())
    if synonym is not None and synonym.lower() in lower:
        return f" (did you mean {synonym!r}?)"
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""


def is_whole(value: Any, /) -> TypeGuard[int]:
    """Whether it is a whole number: of Python, or of NumPy or JAX without axes. Truth values and floats are none."""
    return (isinstance(value, int) and not isinstance(value, bool)) or _scalar(value, "iu")


def is_real(value: Any, /) -> TypeGuard[float]:
    """Whether it is a real number, which may be infinite: as `is_whole`, and floats and fractions."""
    return is_whole(value) or (isinstance(value, Real) and not isinstance(value, bool)) or _scalar(value, "f")


def is_number(value: Any, /) -> TypeGuard[float]:
    """Whether it is a finite real number."""
    return is_whole(value) or (is_real(value) and math.isfinite(value))


def _scalar(value: Any, kinds: str) -> bool:
    """Whether it is an array without axes, or a scalar of NumPy, of one of these kinds."""
    return getattr(value, "ndim", None) == 0 and getattr(getattr(value, "dtype", None), "kind", "") in tuple(kinds)


def must_be_share(name: str, value: Any, remedy: str, /, *, one: bool = False) -> None:
    """Refuse what is not above 0 and below 1 (or at most 1, if `one`); what JAX traces was checked as a number."""
    from jax.core import Tracer

    if isinstance(value, Tracer) or (is_number(value) and (0 < value < 1 or (one and value == 1))):
        return
    raise InputError(f"{name} must be above 0 and {'at most' if one else 'below'} 1, found {value!r}: {remedy}")


def whole_rounds(name: str, value: Any, /, *, least: int = 0, most: int = 10**9) -> int:
    """Return a whole number of rounds between bounds; refuse anything else by name."""
    if not is_whole(value) or not least <= value <= most:
        bound = f"≥ {least}" if not is_whole(value) or value < least else f"≤ {most}"
        raise InputError(f"{name} must be a whole number of rounds {bound}, found {shortened(value)}: try {name}=10")
    return int(value)


#: A whole number, for annotations: they let in all that enters, for what is none is refused in our words.
Count = Annotated[Any, int]


#: As numbers are written: `int` and `float` also take 0_5, and the digits of all scripts.
_WHOLE = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)


def whole_in(text: str, /) -> int | None:
    """The whole number that a text is, spaces around it aside; None if it is none."""
    return int(text) if _WHOLE.fullmatch(text.strip(" \t")) and len(text) <= 4300 else None


def real_in(text: str, /) -> float | None:
    """The real number that a text is, NaN and infinity among them, spaces around it aside; None if it is none."""
    return float(text) if _REAL.fullmatch(text.strip(" \t")) else None


def plain(value: Any, /) -> Any:
    """A whole number as Python's, which can be hashed and printed; anything else as it is, to be refused later."""
    return int(value) if is_whole(value) else value


#: The largest count, and the largest size of a real number, that any argument takes.
LARGEST_COUNT, LARGEST_REAL = 10**9, 1e100
#: The largest size of a number in an array: its fourth power is a float, which products of kernels and losses need.
LARGEST_VALUE = 1e75
#: The largest seed.
LARGEST_SEED = 2**63 - 1


def whole(value: object, name: str, *, least: int, most: int = LARGEST_COUNT) -> int:
    """Return a whole number between bounds as a Python int; refuse anything else by name."""
    if not is_whole(value) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, found {shortened(value)}")
    if value > most:
        raise InputError(f"{name} must be a whole number from {least} to {most}, found {shortened(value)}")
    return int(value)


def shortened(value: object) -> str:
    """A value's `repr`, or the beginning of a long one; Python prints no integers above some thousand digits."""
    if is_whole(value) and abs(value) >= 10**40:
        return f"a number of about {int(abs(value)).bit_length() * 0.30103:.0f} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def real(value: object, name: str, *, least: int | float = -math.inf, above: int | float = -math.inf) -> float:
    """A finite number of at least `least` and above `above`, as Python's; refused by name where it is none."""
    if not is_number(value) or not least <= value or not above < value or not abs(float(value)) <= LARGEST_REAL:
        bound = f" of at least {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
        if is_number(value) and abs(float(value)) > LARGEST_REAL:
            bound = f" within ±{LARGEST_REAL:g}"
        raise InputError(f"{name} must be a finite number{bound}, found {shortened(value)}")
    return float(value)
