"""What to cite for a run, as BibTeX: the algorithm, the network, the data and the software that it is made of.

The entries are in `references.bib` beside this file, one field a line and a blank line between entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from ntkp2p.algorithms import Algorithm, LocalSGD, Modifier
from ntkp2p.base.errors import InputTypeError
from ntkp2p.models import Network
from ntkp2p.runs.experiment import Experiment

#: The keys that go with what has a name: an algorithm, what mixing has, a network, a data set, a partition.
KEYS: Mapping[str, tuple[str, ...]] = {
    "DGD": ("nedic2009", "yuan2016"),
    "CTA": ("chen2012", "sayed2014"),
    "ATC": ("chen2012", "sayed2014"),
    "PushSum": ("kempe2003", "nedic2015", "nedic2016", "assran2019"),
    "SparsePush": ("kempe2003", "nedic2016", "aketi2021", "stich2018"),
    "CHOCO": ("koloskova2019",),
    "LocalSGD": ("stich2019",),
    "Delayed": ("agarwal2011", "tsitsiklis1986"),
    "clocks": ("mitra2024", "lian2018", "boyd2006"),
    "opportunistic": ("mitra2022",),
    "cap": ("draco2024",),
    "resnet20": ("he2016", "wu2018"),
    "vgg11": ("simonyan2015", "wu2018"),
    "mnist": ("lecun1998", "raschka2018"),
    "digits": ("alpaydin1998", "pedregosa2011"),
    "dirichlet": ("hsu2019",),
}


class Citation(str):
    """BibTeX, which prints as it is.

    Attributes
    ----------
    keys
        Of its entries, in their order.
    """

    keys: tuple[str, ...]

    __repr__ = str.__str__


def citation(experiment: Experiment, /) -> Citation:
    """What to cite for a run: this library and its paper, the algorithm, the network, the data, and the software.

    A mixing matrix does not record how its weights were found: add that source for the fastest mixing, for example.

    Parameters
    ----------
    experiment
        The run.

    Returns
    -------
    citation
        BibTeX, a string; `citation.keys` are the entries' keys.

    Raises
    ------
    TypeError
        If it is not an experiment.

    Examples
    --------
    >>> print(citation(experiment))  # doctest: +SKIP
    """
    if not isinstance(experiment, Experiment):
        raise InputTypeError(f"citation takes an Experiment, found {type(experiment).__name__}: p2p.Experiment(...)")
    entries = references()
    keys = tuple(dict.fromkeys(_keys(experiment)))
    found = Citation("\n\n".join(entries[key] for key in keys))
    found.keys = keys
    return found


@cache
def references() -> Mapping[str, str]:
    """All entries of `references.bib` by their keys."""
    from ntkp2p import __version__

    text = Path(__file__).with_name("references.bib").read_text(encoding="utf-8").replace("VERSION", __version__)
    return {re.match(r"@\w+{(\w+),", entry)[1]: entry for entry in text.strip().split("\n\n")}  # pyright: ignore


def _keys(experiment: Experiment) -> Iterator[str]:
    yield from ("ntkp2p", "chaudhari2025")
    yield from _of_algorithm(experiment.algorithm)
    for topic in experiment.topology.topics:
        yield from KEYS.get(topic, ())
    yield from _of_model(experiment.model)
    yield from KEYS.get(experiment.data.dataset.name, ())
    yield from KEYS.get(experiment.data.by.split(",")[0], ())
    if experiment.loss != "squared":
        yield "kidger2021"  # diffrax
    yield from ("jax2018", "kidger2021equinox", "hoyer2017")


def _of_algorithm(algorithm: Algorithm) -> Iterator[str]:
    # A subclass builds on what its bases cite.
    for base in type(algorithm).__mro__:
        yield from KEYS.get(base.__name__, ())
    if isinstance(algorithm, Modifier):
        yield from _of_algorithm(algorithm.algorithm)
    if getattr(algorithm, "adaptive", None) is not None:
        yield "aketi2024"
    if isinstance(algorithm, LocalSGD) and algorithm.momentum is not None:
        yield "polyak1964"  # the heavy ball


def _of_model(model: object) -> Iterator[str]:
    name = model.name.split("(")[0] if isinstance(model, Network) else ""
    if name == "affine":
        return  # its own linearisation
    yield from ("jacot2018", "lee2019", *KEYS.get(name, ()))
    if isinstance(model, Network) and model.infinite:
        yield from ("neal1996", "lee2018", "novak2020")
