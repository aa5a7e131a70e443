"""A report as text, as HTML, and for rich: facts by name, and a verdict for each algorithm."""

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ntkp2p.topology.verdicts import Verdict

#: The width of plain text.
WIDTH = 80
_STYLES = {"works": "green", "works, but": "yellow", "does not work": "red"}

Rows = Sequence[tuple[str, str]]


def plain(title: str, facts: Rows, verdicts: Iterable[Verdict]) -> str:
    """Aligned columns, and the verdicts below."""
    width = max(len(label) for label, _ in facts)
    lines = [title]
    for label, value in facts:
        lines += textwrap.wrap(
            f"{label:<{width}}   {value}", WIDTH, initial_indent="  ", subsequent_indent=" " * (width + 5)
        )
    for names, verdict in grouped(verdicts):
        text = f"{names}: {sentence(verdict)}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def page(title: str, facts: Rows, verdicts: Iterable[Verdict]) -> str:
    """Two HTML tables."""
    cells = "".join(_row(label, value) for label, value in facts)
    judged = "".join(_row(names, v.works, v.reason, v.remedy) for names, v in grouped(verdicts))
    head = "".join(f"<th>{name}</th>" for name in ("algorithm", "verdict", "reason", "remedy"))
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table><table><tr>{head}</tr>{judged}</table>"


def rich_tables(title: str, facts: Rows, verdicts: Iterable[Verdict]) -> Any:
    """The same for `rich`."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    known = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    for label, value in facts:
        known.add_row(Text(label), Text(value))
    judged = Table("algorithm", "verdict", "reason", "remedy", box=box.SIMPLE)
    for names, v in grouped(verdicts):
        judged.add_row(Text(names), Text(v.works, style=_STYLES[v.works]), Text(v.reason), Text(v.remedy))
    return Group(known, judged)


def grouped(verdicts: Iterable[Verdict]) -> list[tuple[str, Verdict]]:
    """Algorithms of which the same is to be said are named together."""
    names: dict[tuple, list[Verdict]] = {}
    for verdict in verdicts:
        names.setdefault((verdict.works, verdict.reason, verdict.remedy), []).append(verdict)
    return [(", ".join(v.algorithm for v in same), same[0]) for same in names.values()]


def sentence(verdict: Verdict) -> str:
    """The verdict in one line."""
    joint = " " if verdict.works == "works, but" else ": "
    return f"{verdict.works}{joint}{verdict.reason}" + (f" → {verdict.remedy}" if verdict.remedy else "")


def plain_data(value: Any) -> Any:
    """Numbers, texts, lists and None, as JSON has them: what is not finite is None, a complex number is a pair."""
    if isinstance(value, dict):
        return {key: plain_data(v) for key, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain_data(value.tolist())
    if isinstance(value, list | tuple):
        return [plain_data(v) for v in value]
    if isinstance(value, complex):
        return [plain_data(value.real), plain_data(value.imag)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
