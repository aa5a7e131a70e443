"""The table of errors that `ntkp2p figures` prints and writes: one row per run, in text and in Markdown."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ntkp2p.base.files import replacing

#: What the numbers are; the errors' names are those of `ntkp2p.Comparison.errors`.
CAPTION = "Errors of the local losses: the worst agent and round, relative to the initial loss."
#: The file beside the figures.
FILE = "errors.md"
#: Columns of text that a printed table takes at most.
WIDTH = 100


def as_text(table: pd.DataFrame, /) -> str:
    """The table in at most 100 columns; long names of runs are wrapped, and rows without numbers follow as notes."""
    errors, notes = _numbers_and_notes(table)
    cells = {name: [_in_words(name, value) for value in errors[name]] for name in errors}
    widths = {name: max(map(len, [name, *cells[name]])) for name in cells}
    names = WIDTH - sum(widths.values()) - 2 * len(widths)
    lines = [_line("run", names, widths, dict(zip(widths, widths, strict=True)))]
    for row, name in enumerate(errors.index):
        *begun, last = textwrap.wrap(str(name), names - 2, subsequent_indent="  ")
        lines += [*begun, _line(last, names, widths, {column: cells[column][row] for column in cells})]
    return "\n".join([*(lines if len(errors) else []), *_wrapped(notes), *_wrapped([CAPTION])])


def as_markdown(table: pd.DataFrame, /) -> str:
    """The table without the times, which differ from machine to machine."""
    errors, notes = _numbers_and_notes(table)
    errors = errors[[name for name in errors if not name.endswith("[s]")]]
    rows = [["run", *errors], ["---"] * (1 + len(errors.columns))]
    rows += [[str(run), *(_in_words(name, row[name]) for name in errors)] for run, row in errors.iterrows()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([CAPTION, "", *lines, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def write(table: pd.DataFrame, folder: Path, /) -> Path:
    """Write the Markdown table beside the figures."""
    with replacing(folder / FILE) as temporary:
        temporary.write_text(as_markdown(table), encoding="utf-8")
    return folder / FILE


def _numbers_and_notes(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    known = [name for name in table if not name.startswith("mean")]
    empty = table[known].isna().all(axis=1)
    numbers = table.loc[~empty].dropna(axis="columns", how="all")
    return numbers, [str(name) for name in table.index[empty]]


def _in_words(column: str, value: float) -> str:
    """Errors in per cent, down to 0.01 %; smaller ones and the solver's as powers of ten; times in seconds."""
    if np.isnan(value):
        return ""
    if column.endswith("[s]"):
        return f"{value:.1f}"
    if column == "solver" or value < 1e-4:
        return f"{value:.0e}"
    return f"{100 * value:.2f} %" if value < 0.1 else f"{100 * value:.0f} %"


def _line(name: str, width: int, widths: Mapping[str, int], cells: Mapping[str, str]) -> str:
    return f"{name:<{width}}" + "".join(f"  {cells[column]:>{widths[column]}}" for column in widths)


def _wrapped(notes: Iterable[str]) -> Iterator[str]:
    for note in notes:
        yield textwrap.fill(note, WIDTH, subsequent_indent="  ")
