"""Sizes of graphs: whole numbers, bounded before any memory is reserved."""

import math
from typing import Any

from ntkp2p.base.checks import is_whole, shortened
from ntkp2p.base.errors import InputError
from ntkp2p.topology.matrix import MOST_AGENTS

#: The largest graph that is built from all pairs of agents.
MOST_WITH_PAIRS = 20_000
#: The graphs that are.
OF_PAIRS = ("complete", "erdos_renyi", "random_geometric", "directed_random")


def sizes_of(function: str, least: int | float, /, **sizes: Any) -> list[int]:
    """Return a graph's sizes as Python ints; refuse what is no whole number, too small or too large."""
    call = f"{function}({', '.join(sizes)})"
    for name, size in sizes.items():
        if not is_whole(size):
            raise InputError(f"{call} takes a whole number {name}, found {shortened(size)}")
        if size < least:
            raise InputError(f"{call} needs {name} >= {least}, got {size}")
    numbers = list(map(int, sizes.values()))
    agents = 2 ** min(numbers[0], 64) if function == "hypercube" else math.prod(numbers)
    most = (
        MOST_WITH_PAIRS
        if function in ("complete", "erdos_renyi", "random_geometric", "directed_random")
        else MOST_AGENTS
    )
    if agents > most:
        raise InputError(f"{call} takes at most {most:,} agents, found {name} = {shortened(size)}")
    return numbers
